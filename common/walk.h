// SPDX-License-Identifier: Apache-2.0
// The definition of a neighborhood as loops: every key that a query sees, every query that sees a key. The naive
// kernels, on every device, are made of these.
#pragma once

#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"

namespace jax_na {

// What a token sees along one axis: positions of its dilation group. Position i is the token i * step + shift of those
// present.
struct AxisView {
  int group, position;  // of the token that looks
  Range seen;
  int step, shift;
};

// What one row of [batch, tokens, heads] sees: the box that its views along the axes span.
struct View {
  int64_t batch;
  int head;
  AxisView axis[kAxes];
};

inline namespace JAX_NA_ISA {

// The keys that a query sees; `local` counts from the first query present.
JAX_NA_HD constexpr AxisView keys_on_axis(const Problem& problem, int axis, int local) {
  const Axis& grid = problem.axis[axis];
  const int coordinate = problem.q0[axis] + local;
  const int group = coordinate % grid.dilation, position = coordinate / grid.dilation;
  const Range seen = window(grid, group_length(grid, group), position);
  return {group, position, seen, grid.dilation, group - problem.k0[axis]};
}

// The queries present that see a key; `local` counts from the first key present.
JAX_NA_HD constexpr AxisView queries_on_axis(const Problem& problem, int axis, int local) {
  const Axis& grid = problem.axis[axis];
  const int coordinate = problem.k0[axis] + local;
  const int group = coordinate % grid.dilation, position = coordinate / grid.dilation;
  const Range all = inverse_window(grid, group_length(grid, group), position);
  const Range present = positions_present(grid.dilation, group, problem.q0[axis], problem.nq[axis]);
  const Range seen{max(all.start, present.start), min(all.stop, present.stop)};
  return {group, position, seen, grid.dilation, group - problem.q0[axis]};
}

JAX_NA_HD constexpr View view_of_query(const Problem& problem, int64_t row) {
  View view{};
  view.head = static_cast<int>(row % problem.heads);
  row /= problem.heads;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    view.axis[axis] = keys_on_axis(problem, axis, static_cast<int>(row % problem.nq[axis]));
    row /= problem.nq[axis];
  }
  view.batch = row;
  return view;
}

JAX_NA_HD constexpr View view_of_key(const Problem& problem, int64_t row) {
  View view{};
  view.head = static_cast<int>(row % problem.kv_heads);
  row /= problem.kv_heads;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    view.axis[axis] = queries_on_axis(problem, axis, static_cast<int>(row % problem.nk[axis]));
    row /= problem.nk[axis];
  }
  view.batch = row;
  return view;
}

// Whether the window of a query lies inside the keys present: on GPUs, offsets are not known before the launch.
JAX_NA_HD constexpr bool window_present(const Problem& problem, const View& query) {
  bool present = true;
  for (int axis = 0; axis < kAxes; ++axis) {
    const AxisView& keys = query.axis[axis];
    present = present && keys.seen.start * keys.step + keys.shift >= 0 &&
              (keys.seen.stop - 1) * keys.step + keys.shift < problem.nk[axis];
  }
  return present;
}

// Row of the token at these positions, in [batch, tokens, heads].
JAX_NA_HD constexpr int64_t row_at(const View& view, const int (&position)[kAxes], const int (&extent)[kAxes],
                                   int heads, int head) {
  int64_t row = view.batch;
  for (int axis = 0; axis < kAxes; ++axis)
    row = row * extent[axis] + position[axis] * view.axis[axis].step + view.axis[axis].shift;
  return row * heads + head;
}

// The bodies below run where their caller runs, which the compiler for GPUs does not see.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
// Calls body(slot, row of the key) for every key that the query sees, in slot order.
template <class Body>
JAX_NA_HD inline void for_each_key(const Problem& problem, const View& query, const Body& body) {
  const AxisView(&keys)[kAxes] = query.axis;
  const int kv_head = query.head / query_heads_per_kv_head(problem);
  for (int z = keys[0].seen.start; z < keys[0].seen.stop; ++z)
    for (int y = keys[1].seen.start; y < keys[1].seen.stop; ++y)
      for (int x = keys[2].seen.start; x < keys[2].seen.stop; ++x) {
        const int rows = (z - keys[0].seen.start) * problem.axis[1].kernel_size + y - keys[1].seen.start;
        const int slot = rows * problem.axis[2].kernel_size + x - keys[2].seen.start;
        body(slot, row_at(query, {z, y, x}, problem.nk, problem.kv_heads, kv_head));
      }
}

// Slot of a key, along an axis, in the window of the query at a position.
JAX_NA_HD constexpr int slot_on_axis(const Problem& problem, const AxisView& key, int axis, int query) {
  const Axis& grid = problem.axis[axis];
  return key.position - window(grid, group_length(grid, key.group), query).start;
}

#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
// Calls body(slot, row of the query) for every query that sees the key, and for every head that shares the key's.
template <class Body>
JAX_NA_HD inline void for_each_query(const Problem& problem, const View& key, const Body& body) {
  const AxisView(&queries)[kAxes] = key.axis;
  const int repeats = query_heads_per_kv_head(problem);
  for (int z = queries[0].seen.start; z < queries[0].seen.stop; ++z)
    for (int y = queries[1].seen.start; y < queries[1].seen.stop; ++y)
      for (int x = queries[2].seen.start; x < queries[2].seen.stop; ++x) {
        const int rows = slot_on_axis(problem, queries[0], 0, z) * problem.axis[1].kernel_size +
                         slot_on_axis(problem, queries[1], 1, y);
        const int slot = rows * problem.axis[2].kernel_size + slot_on_axis(problem, queries[2], 2, x);
        const int64_t row = row_at(key, {z, y, x}, problem.nq, problem.heads, key.head * repeats);
        for (int repeat = 0; repeat < repeats; ++repeat) body(slot, row + repeat);
      }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
