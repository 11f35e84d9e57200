// SPDX-License-Identifier: Apache-2.0
// The window rule, its exact inverse and the tile ranges, along one axis. Windows are separable: an N-dimensional
// neighborhood is the product of these. Every kernel, on every device, uses this file; jax_na/window_rule.py has the
// rule for Python.
//
// Dilation d splits an axis into d interleaved groups; coordinate x is position x / d of group x % d. All ranges here
// are half-open and in positions inside one group of `length` tokens.
#pragma once

#include "common/isa.h"

namespace jax_na {

struct Range {
  int start, stop;
};

// One axis of the whole key grid, as the user gave it.
struct Axis {
  int length, kernel_size, stride, dilation;
  bool is_causal;
};

// One dilation group of an axis: what of it exists, and which of its queries and keys are present in this call.
struct Group {
  int index;      // coordinate = position * dilation + index
  int length;     // of the whole grid
  Range queries;  // positions present
  Range keys;
};

inline namespace JAX_NA_ISA {

JAX_NA_HD constexpr int min(int a, int b) { return a < b ? a : b; }
JAX_NA_HD constexpr int max(int a, int b) { return a < b ? b : a; }
JAX_NA_HD constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

JAX_NA_HD constexpr int group_length(const Axis& axis, int group) {
  return ceil_div(axis.length - group, axis.dilation);
}

// Keys of the query at a position. With a stride, that many neighbouring queries share the window of their leader: the
// middle one, or if causal the last one. A window is centred on the leader and shifted inwards at the borders; causal,
// it ends at the leader and is cut at the query itself.
JAX_NA_HD constexpr Range window(const Axis& axis, int length, int query) {
  const int size = axis.kernel_size, stride = axis.stride;
  const int first = stride == 1 ? query : query / stride * stride;  // of those that share the window
  if (axis.is_causal) {
    const int leader = min(first + stride - 1, length - 1);
    return {max(leader - size + 1, 0), query + 1};
  }
  const int leader = min(first + stride / 2, length - 1);
  const int start = min(max(leader - size / 2, 0), length - size);
  return {start, start + size};
}

// Queries that see the key at a position: an interval, because both ends of `window` are non-decreasing. Away from the
// borders, `left` keys before a leader and `right` after it are seen, so the leaders that see a key are those from
// key - right to key + left; at a border, the first (last) kernel_size keys are seen by all queries up to it.
JAX_NA_HD constexpr Range inverse_window(const Axis& axis, int length, int key) {
  const int size = axis.kernel_size, stride = axis.stride;
  if (axis.is_causal) return {key, min(((key + size) / stride + (key + size >= length ? 1 : 0)) * stride, length)};
  const int left = size / 2, right = size - left - 1;
  const int shift = stride - stride / 2 - 1;  // queries after a leader that share its window
  const int start = key < size ? 0 : (key - right + shift) / stride * stride;
  const int stop = key >= length - size ? length : min((key + left + shift + 1) / stride * stride, length);
  return {start, stop};
}

// Union of the windows of the queries first..last: what a query tile has to visit.
JAX_NA_HD constexpr Range tile_keys(const Axis& axis, int length, int first, int last) {
  return {window(axis, length, first).start, window(axis, length, last).stop};
}

// Their intersection: keys that need no mask. Empty when stop <= start.
JAX_NA_HD constexpr Range tile_inner_keys(const Axis& axis, int length, int first, int last) {
  return {window(axis, length, last).start, window(axis, length, first).stop};
}

// Union of the inverse windows of the keys first..last.
JAX_NA_HD constexpr Range tile_queries(const Axis& axis, int length, int first, int last) {
  return {inverse_window(axis, length, first).start, inverse_window(axis, length, last).stop};
}

// Positions of a group among the coordinates [first, first + count).
JAX_NA_HD constexpr Range positions_present(int dilation, int group, int first, int count) {
  return {max(ceil_div(max(first - group, 0), dilation), 0), max(ceil_div(max(first + count - group, 0), dilation), 0)};
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
