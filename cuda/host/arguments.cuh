// SPDX-License-Identifier: Apache-2.0
// From the arguments of a call to what the kernels on tensor cores know of it.
#pragma once

#include <cmath>

#include "common/call/args.h"
#include "cuda/block/block.cuh"
#include "cuda/block/tokens.cuh"

namespace jax_na::cuda {

constexpr char kNoKernel[] = "there is no kernel for these tiles";  // the row of the kernel says it with numbers

inline int tokens_of(const int (&tile)[kAxes]) { return tile[0] * tile[1] * tile[2]; }

inline bool is_chunked(const void* data, int features, int element_bytes) {
  return features * element_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

template <class Math>
Operand make_operand(const void* data, int heads, int features) {
  return {data, heads, features, is_chunked(data, features, sizeof(typename Math::Element))};
}

// Scores become exponents of 2 by a positive factor, applied together with the subtraction of their maximum. A bias, a
// scale that is not positive, need a multiplication of their own before.
template <Side rows>
Geometry make_geometry(const Problem& p, const int (&row_tile)[kAxes], const int (&column_tile)[kAxes],
                       const int32_t* offsets, const float* rpb) {
  Geometry g{};
  g.problem = p;
  g.tiling = make_tiling<rows>(p, row_tile, column_tile);
  g.repeats = make_repeats(g.tiling);
  g.tiles = static_cast<uint32_t>(tile_count(p, g.tiling));
  g.offsets = offsets;
  g.rpb = rpb;
  const float scale = static_cast<float>(p.scale), exponents = std::abs(scale) * kLog2E;
  if (rpb != nullptr) {
    g.premultiplier = scale * kLog2E;
    g.factor = 1;
  } else {
    g.premultiplier = scale > 0 ? 1.f : scale < 0 ? -1.f : 0.f;
    g.factor = scale != 0 ? exponents : 1.f;
  }
  return g;
}

}  // namespace jax_na::cuda
