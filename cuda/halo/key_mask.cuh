// SPDX-License-Identifier: Apache-2.0
// The mask of keys in the halo kernels: which columns of a warp's box exist in a batch entry.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "cuda/halo/shape.cuh"
#include "cuda/halo/tables.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Of 32 columns in a row, the bits of those that a lane has: of every 8, the two from 2 * column on.
__device__ __forceinline__ uint32_t own_bits(uint32_t columns, int column) {
  uint32_t own = 0;
#pragma unroll
  for (int tile = 0; tile < 4; ++tile) own |= (columns >> (8 * tile + 2 * column) & 3) << 2 * tile;
  return own;
}

// Whether the key of a column of the warp's box exists.
template <class Shape>
__device__ __forceinline__ bool key_exists(const HaloTables<Shape>& tables, const uint8_t* mask, int column) {
  const int place = tables.warp_box().place + tables.template at<int>(tables.p.layout.columns)[column];
  const uint32_t row = tables.template at<HaloToken>(tables.p.layout.tokens)[place / Shape::kRowBytes].row;
  return mask[row / static_cast<uint32_t>(tables.problem().kv_heads)] != 0;
}

// By all lanes of every warp, for itself, when the tables of the tile are there; nobody reads the words of the batch
// entry before. Called, because what it needs of registers it needs but once for all heads.
template <class Shape>
__device__ __noinline__ void find_existing(const HaloParams<typename Shape::Call>& params, char* shared,
                                           uint32_t batch) {
  const HaloTables<Shape> tables{params, shared};
  const uint8_t* mask = params.call.key_mask + batch * key_tokens(tables.problem());
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int columns = key_tokens(tables.problem()) > 0 ? tables.box_tokens() : 0;
#pragma unroll 1
  for (int part = 0; part < tables.parts(); ++part) {
    uint32_t own = 0;
#pragma unroll 1
    for (int first = 0; first < Shape::kColumns; first += 32) {
      const int within = first + lane, column = part * Shape::kColumns + within;
      const bool exists = within < Shape::kColumns && column < columns && key_exists(tables, mask, column);
      own |= own_bits(warp_ballot(exists), lane % 4) << first / 4;
    }
    if (lane < 4) tables.existing(part, lane) = own;
  }
}

}  // namespace jax_na::cuda
