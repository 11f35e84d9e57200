// SPDX-License-Identifier: Apache-2.0
// The suspects of a halo kernel (block/suspects.cuh).
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/suspects.cuh"
#include "cuda/fused/rows.cuh"
#include "cuda/halo/tables.cuh"
#include "cuda/ptx/element.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Computes again the rows of the block that are suspects. They are looked for in memory, after all
// tiles: to remember them would cost registers where there are none.
template <class Shape>
__device__ __noinline__ void compute_suspects(const HaloParams& params, char* shared) {
  using Element = typename Shape::Element;
  const HaloTables<Shape> tables{params, shared};
  const ForwardParams& forward = params.forward;
  const int lane = static_cast<int>(threadIdx.x) % 32, heads = forward.query.heads, features = forward.value.features;
  const uint32_t tiles = forward.geometry.tiles;
#pragma unroll 1
  for (uint32_t unit = blockIdx.x; unit < params.units; unit += gridDim.x) {
    block_sync();  // nobody reads the tables of the tile before
    tables.open(unit % tiles);
    block_sync();
    if (!tables.has_queries() || !tables.is_complete()) continue;
#pragma unroll 1
    for (int i = 0; i < 16 * heads; ++i) {
      const int within = tables.query_row(static_cast<int>(threadIdx.x) / 32 * 16 + i % 16);
      if (within < 0) continue;
      const int64_t row = unit / tiles * query_tokens(tables.problem()) * heads + within + i / 16;
      Finite finite;
      for (int feature = lane; feature < features; feature += 32)
        finite.add(widen(static_cast<const Element*>(forward.out)[row * features + feature]));
      if (warp_any(!finite.all())) attend_again<Element>(forward, tables.room(), row);
    }
  }
}

}  // namespace jax_na::cuda
