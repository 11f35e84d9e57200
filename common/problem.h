// SPDX-License-Identifier: Apache-2.0
// Everything one call needs to know, padded to three spatial axes with leading axes of length one.
#pragma once

#include <stdint.h>

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

JAX_NA_HD constexpr int64_t query_tokens(const Problem& p) { return int64_t{p.nq[0]} * p.nq[1] * p.nq[2]; }
JAX_NA_HD constexpr int64_t key_tokens(const Problem& p) { return int64_t{p.nk[0]} * p.nk[1] * p.nk[2]; }
JAX_NA_HD constexpr int slots(const Problem& p) {
  return p.axis[0].kernel_size * p.axis[1].kernel_size * p.axis[2].kernel_size;
}
JAX_NA_HD constexpr int group_count(const Problem& p) {
  return p.axis[0].dilation * p.axis[1].dilation * p.axis[2].dilation;
}
JAX_NA_HD constexpr int bias_entries(const Problem& p) {
  return (2 * p.axis[0].kernel_size - 1) * (2 * p.axis[1].kernel_size - 1) * (2 * p.axis[2].kernel_size - 1);
}
JAX_NA_HD constexpr int query_heads_per_kv_head(const Problem& p) { return p.heads / p.kv_heads; }

JAX_NA_HD constexpr Group group_of(const Problem& p, int axis, int index) {
  const Axis& a = p.axis[axis];
  return {index, group_length(a, index), positions_present(a.dilation, index, p.q0[axis], p.nq[axis]),
          positions_present(a.dilation, index, p.k0[axis], p.nk[axis])};
}

// Takes over the run-time offsets, [rank, 2]: the first query and the first key of each axis.
JAX_NA_HD constexpr void place(Problem& p, const int32_t* offsets) {
  for (int a = 0; a < kAxes; ++a) {
    const int i = a - (kAxes - p.rank);
    p.q0[a] = i < 0 ? 0 : offsets[2 * i];
    p.k0[a] = i < 0 ? 0 : offsets[2 * i + 1];
  }
}

// Whether the queries and the keys present are inside the grid.
JAX_NA_HD constexpr bool region_present(const Problem& p, int axis) {
  const int64_t queries = int64_t{p.q0[axis]} + p.nq[axis], keys = int64_t{p.k0[axis]} + p.nk[axis];
  const int length = p.axis[axis].length;
  return p.q0[axis] >= 0 && p.k0[axis] >= 0 && queries <= length && keys <= length;
}

// Every window of the queries present must lie inside the keys present; false would be a read out of bounds.
JAX_NA_HD constexpr bool windows_present(const Problem& p, int axis) {
  const Axis& a = p.axis[axis];
  if (!region_present(p, axis)) return false;
  for (int g = 0; g < a.dilation; ++g) {
    const Group group = group_of(p, axis, g);
    if (group.queries.start >= group.queries.stop) continue;
    const Range keys = tile_keys(a, group.length, group.queries.start, group.queries.stop - 1);
    if (keys.start < group.keys.start || keys.stop > group.keys.stop) return false;
  }
  return true;
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
