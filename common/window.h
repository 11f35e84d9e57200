// SPDX-License-Identifier: Apache-2.0
// The window rule, its exact inverse and the tile ranges, along one axis. Windows are separable: an N-dimensional
// neighborhood is the product of these. Every kernel, on every device, and Python (through the binding) use this file.
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

// Keys of the query at position i. With stride, s neighbouring queries share the window of their leader.
JAX_NA_HD constexpr Range window(const Axis& axis, int length, int i) {
  const int w = axis.kernel_size, s = axis.stride, first = s == 1 ? i : i / s * s;
  if (axis.is_causal) {
    const int leader = min(first + s - 1, length - 1);
    return {max(leader - w + 1, 0), i + 1};
  }
  const int leader = min(first + s / 2, length - 1);
  const int start = min(max(leader - w / 2, 0), length - w);
  return {start, start + w};
}

// Queries that see the key at position k: an interval, because both ends of `window` are non-decreasing in i.
JAX_NA_HD constexpr Range inverse_window(const Axis& axis, int length, int k) {
  const int w = axis.kernel_size, s = axis.stride;
  if (axis.is_causal) return {k, min(((k + w) / s + (k + w >= length ? 1 : 0)) * s, length)};
  const int left = w / 2, right = w - left - 1, shift = s - s / 2 - 1;
  return {k < w ? 0 : (k - right + shift) / s * s,
          k >= length - w ? length : min((k + left + shift + 1) / s * s, length)};
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

// Positions of group g among the coordinates [first, first + count).
JAX_NA_HD constexpr Range positions_present(int dilation, int group, int first, int count) {
  return {max(ceil_div(max(first - group, 0), dilation), 0), max(ceil_div(max(first + count - group, 0), dilation), 0)};
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
