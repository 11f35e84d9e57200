// SPDX-License-Identifier: Apache-2.0
// Keys that are masked, for the row kernels: the columns of a key row that nobody sees.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cpu/rows/block.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/tile.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// 0, or -inf for a key that is masked: the columns of the first lane, and if lanes are shifted as many as there are
// lanes besides. Null without a mask.
struct HiddenColumns {
  const float* at;
  bool shifted;

  explicit operator bool() const { return at != nullptr; }
  // The scores of a column, -inf where its key is masked: whatever that holds does not count.
  Vec hide(int c, Vec scores) const {
    const Vec column = shifted ? load(at + c) : splat(at[c]);
    return select(column == Vec{}, scores, column);
  }
};

// Floats for the columns of a key row, at most.
inline int64_t hidden_floats(const Problem& problem) {
  return int64_t{problem.axis[2].kernel_size} + 2 * kWidth + 3 * (problem.axis[2].stride - 1) + 2;
}

// Of the key row at (z, y), made in `room`. Columns beyond the keys present are outside every window.
inline HiddenColumns hidden_columns(const BlockLanes& lanes, const uint8_t* mask, int z, int y, float* room) {
  if (mask == nullptr) return {nullptr, false};
  const Problem& problem = lanes.problem;
  const LaneTile& tile = lanes.tile;
  const Range keys = lanes.unit.tile.group[2].keys;
  const int first = lane_origin(tile, 0), count = tile.columns + (tile.shifted ? kWidth : 0);
  const int64_t token = key_token(problem, lanes.unit.tile, {z, y, first});
  for (int c = 0; c < count; ++c) {
    const int64_t at = token + int64_t{c} * problem.axis[2].dilation;
    room[c] = inside(first + c, keys) && mask[at] == 0 ? -INFINITY : 0.0f;
  }
  return {room, tile.shifted};
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
