// SPDX-License-Identifier: Apache-2.0
// Everything one call needs to know, padded to three spatial axes with leading axes of length one.
#pragma once

#include <stdint.h>

#include "common/isa.h"
#include "common/window.h"

namespace jax_na {

constexpr int kAxes = 3;

struct Problem {
  int64_t batch;             // product of all leading axes
  int rank;                  // axes that the caller gave: the last ones
  Axis axis[kAxes];          // the whole grid
  int q0[kAxes], nq[kAxes];  // queries present: coordinates [q0, q0 + nq)
  int k0[kAxes], nk[kAxes];  // keys present
  int heads, kv_heads;       // query head h reads kv head h / (heads / kv_heads)
  int head_dim, value_dim;
  int pitch;        // elements between two rows of weights, >= number of slots
  int tile[kAxes];  // tokens of one tile, product kLanes
  double scale;
};

inline namespace JAX_NA_ISA {

JAX_NA_HD constexpr int64_t query_tokens(const Problem& problem) {
  return int64_t{problem.nq[0]} * problem.nq[1] * problem.nq[2];
}
JAX_NA_HD constexpr int64_t key_tokens(const Problem& problem) {
  return int64_t{problem.nk[0]} * problem.nk[1] * problem.nk[2];
}
// Keys of a whole window.
JAX_NA_HD constexpr int slots(const Problem& problem) {
  return problem.axis[0].kernel_size * problem.axis[1].kernel_size * problem.axis[2].kernel_size;
}
JAX_NA_HD constexpr int group_count(const Problem& problem) {
  return problem.axis[0].dilation * problem.axis[1].dilation * problem.axis[2].dilation;
}
// Distances between a query and its keys: entries of rpb per head.
JAX_NA_HD constexpr int bias_entries(const Problem& problem) {
  const Axis(&axis)[kAxes] = problem.axis;
  return (2 * axis[0].kernel_size - 1) * (2 * axis[1].kernel_size - 1) * (2 * axis[2].kernel_size - 1);
}
JAX_NA_HD constexpr int query_heads_per_kv_head(const Problem& problem) { return problem.heads / problem.kv_heads; }

JAX_NA_HD constexpr Group group_of(const Problem& problem, int axis, int index) {
  const Axis& grid = problem.axis[axis];
  return {index, group_length(grid, index), positions_present(grid.dilation, index, problem.q0[axis], problem.nq[axis]),
          positions_present(grid.dilation, index, problem.k0[axis], problem.nk[axis])};
}

// Takes over the run-time offsets, [rank, 2]: the first query and the first key of each axis.
JAX_NA_HD constexpr void place(Problem& problem, const int32_t* offsets) {
  for (int axis = 0; axis < kAxes; ++axis) {
    const int given = axis - (kAxes - problem.rank);  // index among the axes that the caller gave
    problem.q0[axis] = given < 0 ? 0 : offsets[2 * given];
    problem.k0[axis] = given < 0 ? 0 : offsets[2 * given + 1];
  }
}

// Whether the queries and the keys present are inside the grid.
JAX_NA_HD constexpr bool region_present(const Problem& problem, int axis) {
  const int64_t queries = int64_t{problem.q0[axis]} + problem.nq[axis];
  const int64_t keys = int64_t{problem.k0[axis]} + problem.nk[axis];
  const int length = problem.axis[axis].length;
  return problem.q0[axis] >= 0 && problem.k0[axis] >= 0 && queries <= length && keys <= length;
}

// Every window of the queries present must lie inside the keys present; false would be a read out of bounds.
JAX_NA_HD constexpr bool windows_present(const Problem& problem, int axis) {
  const Axis& grid = problem.axis[axis];
  if (!region_present(problem, axis)) return false;
  for (int index = 0; index < grid.dilation; ++index) {
    const Group group = group_of(problem, axis, index);
    if (group.queries.start >= group.queries.stop) continue;
    const Range keys = tile_keys(grid, group.length, group.queries.start, group.queries.stop - 1);
    if (keys.start < group.keys.start || keys.stop > group.keys.stop) return false;
  }
  return true;
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
