// SPDX-License-Identifier: Apache-2.0
// The definition of a neighborhood as loops: every key that a query sees, every query that sees a key. The naive
// kernels, on every device, are made of these.
#pragma once

#include "common/problem.h"

namespace jax_na {

// What a token sees along one axis: positions of its dilation group. Position i is the token i * step + shift of those
// present.
struct Line {
  int group, position;  // of the token that looks
  Range seen;
  int step, shift;
};

// What one row of [batch, tokens, heads] sees: the box that its lines span.
struct View {
  int64_t batch;
  int head;
  Line line[kAxes];
};

inline namespace JAX_NA_ISA {

// The keys that a query sees; `local` counts from the first query present.
JAX_NA_HD constexpr Line keys_on_axis(const Problem& p, int axis, int local) {
  const Axis& a = p.axis[axis];
  const int coordinate = p.q0[axis] + local, group = coordinate % a.dilation, position = coordinate / a.dilation;
  return {group, position, window(a, group_length(a, group), position), a.dilation, group - p.k0[axis]};
}

// The queries present that see a key; `local` counts from the first key present.
JAX_NA_HD constexpr Line queries_on_axis(const Problem& p, int axis, int local) {
  const Axis& a = p.axis[axis];
  const int coordinate = p.k0[axis] + local, group = coordinate % a.dilation, position = coordinate / a.dilation;
  const Range all = inverse_window(a, group_length(a, group), position);
  const Range present = positions_present(a.dilation, group, p.q0[axis], p.nq[axis]);
  const Range seen{max(all.start, present.start), min(all.stop, present.stop)};
  return {group, position, seen, a.dilation, group - p.q0[axis]};
}

JAX_NA_HD constexpr View view_of_query(const Problem& p, int64_t row) {
  View v{};
  v.head = static_cast<int>(row % p.heads);
  row /= p.heads;
  for (int a = kAxes - 1; a >= 0; --a) {
    v.line[a] = keys_on_axis(p, a, static_cast<int>(row % p.nq[a]));
    row /= p.nq[a];
  }
  v.batch = row;
  return v;
}

JAX_NA_HD constexpr View view_of_key(const Problem& p, int64_t row) {
  View v{};
  v.head = static_cast<int>(row % p.kv_heads);
  row /= p.kv_heads;
  for (int a = kAxes - 1; a >= 0; --a) {
    v.line[a] = queries_on_axis(p, a, static_cast<int>(row % p.nk[a]));
    row /= p.nk[a];
  }
  v.batch = row;
  return v;
}

// Row of the token at these positions, in [batch, tokens, heads].
JAX_NA_HD constexpr int64_t row_at(const View& v, const int (&position)[kAxes], const int (&extent)[kAxes], int heads,
                                   int head) {
  int64_t row = v.batch;
  for (int a = 0; a < kAxes; ++a) row = row * extent[a] + position[a] * v.line[a].step + v.line[a].shift;
  return row * heads + head;
}

// The bodies below run where their caller runs, which the compiler for GPUs does not see.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
// Calls body(slot, row of the key) for every key that the query sees, in slot order.
template <class Body>
JAX_NA_HD inline void for_each_key(const Problem& p, const View& query, const Body& body) {
  const Line(&keys)[kAxes] = query.line;
  const int kv_head = query.head / query_heads_per_kv_head(p);
  for (int i = keys[0].seen.start; i < keys[0].seen.stop; ++i)
    for (int j = keys[1].seen.start; j < keys[1].seen.stop; ++j)
      for (int k = keys[2].seen.start; k < keys[2].seen.stop; ++k) {
        const int rows = (i - keys[0].seen.start) * p.axis[1].kernel_size + j - keys[1].seen.start;
        const int slot = rows * p.axis[2].kernel_size + k - keys[2].seen.start;
        body(slot, row_at(query, {i, j, k}, p.nk, p.kv_heads, kv_head));
      }
}

// Slot of a key, along an axis, in the window of the query at position i.
JAX_NA_HD constexpr int slot_on_axis(const Problem& p, const Line& key, int axis, int i) {
  const Axis& a = p.axis[axis];
  return key.position - window(a, group_length(a, key.group), i).start;
}

#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
// Calls body(slot, row of the query) for every query that sees the key, and for every head that shares the key's.
template <class Body>
JAX_NA_HD inline void for_each_query(const Problem& p, const View& key, const Body& body) {
  const Line(&queries)[kAxes] = key.line;
  const int repeats = query_heads_per_kv_head(p);
  for (int i = queries[0].seen.start; i < queries[0].seen.stop; ++i)
    for (int j = queries[1].seen.start; j < queries[1].seen.stop; ++j)
      for (int k = queries[2].seen.start; k < queries[2].seen.stop; ++k) {
        const int rows = slot_on_axis(p, queries[0], 0, i) * p.axis[1].kernel_size + slot_on_axis(p, queries[1], 1, j);
        const int slot = rows * p.axis[2].kernel_size + slot_on_axis(p, queries[2], 2, k);
        const int64_t row = row_at(key, {i, j, k}, p.nq, p.heads, key.head * repeats);
        for (int r = 0; r < repeats; ++r) body(slot, row + r);
      }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
