// SPDX-License-Identifier: Apache-2.0
// Keys that are masked, for the row kernels: a ring of rows like those of the keys, 0 where there is a key and -inf
// where there is none.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "cpu/rows/block.h"
#include "cpu/rows/ring.h"
#include "cpu/rows/scores.h"
#include "cpu/simd/vec.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// The columns of a lane tile; null without a mask.
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

// Floats of the rows of a ring: as of transposed ones of a single feature.
inline int64_t hidden_floats(const KeyRing& ring) {
  return int64_t{extent(ring.z)} * ring.slots * transposed_pitch(extent(ring.columns));
}

// Address of column 0.
inline float* hidden_row(const KeyRing& ring, float* base, int z, int y) {
  return base + int64_t{slot(ring, z, y)} * transposed_pitch(extent(ring.columns)) + kWidth;
}

// Packs a row of the mask, if there is one; `token` is the first of it.
inline void pack_hidden(const KeyRing& ring, const uint8_t* mask, int64_t token, int dilation, float* to) {
  if (mask == nullptr) return;
  for (int c = 0; c < extent(ring.columns); ++c) to[c] = mask[token + int64_t{c} * dilation] == 0 ? -INFINITY : 0.0f;
}

inline HiddenColumns hidden_columns(const KeyRing& ring, const LaneTile& tile, const uint8_t* mask, int z, int y,
                                    float* base) {
  if (mask == nullptr) return {nullptr, false};
  return {key_columns(ring, tile, hidden_row(ring, base, z, y)), tile.shifted};
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
