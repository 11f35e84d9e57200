// SPDX-License-Identifier: Apache-2.0
// The mask of keys in the fused kernels. A masked key has a score of -inf, whatever it holds.
#pragma once

#include <math.h>
#include <stdint.h>

#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/scores.cuh"
#include "cuda/block/store.cuh"
#include "cuda/block/tokens.cuh"
#include "cuda/block/warp.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Which columns of a box of keys exist, as bits that all lanes have. A lane reads the bytes of every 32nd column while
// the box is copied, and votes make words of them when it has landed.
template <class Shape>
struct ExistingKeys {
  using Bits = ColumnBits<Shape>;
  static constexpr int kWords = (Shape::kColumns + 31) / 32;

  const uint8_t* mask;      // [batch, keys] or null: then all exist
  uint32_t coming[kWords];  // bytes of the box that is copied
  Bits bits;                // of the box that has landed

  __device__ __forceinline__ void load(const Geometry& geometry, const Block& block, const Box& box) {
    const BoxTokens tokens(geometry, block.columns, block, box);
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      const int number = 32 * word + static_cast<int>(threadIdx.x) % 32;
      bool exists = number < Shape::kColumns;
      const int token = tokens.index(geometry.tiling.columns, number, exists);
      coming[word] = mask == nullptr ? 1 : exists ? mask[tokens.before + token] : 0;
    }
  }

  // Of additional tokens, which no mask hides.
  __device__ __forceinline__ void load_all() {
    for (uint32_t& byte : coming) byte = 1;
  }

  // By all lanes.
  __device__ __forceinline__ void land() {
    bits = 0;
#pragma unroll
    for (int word = 0; word < kWords; ++word) bits |= Bits{warp_ballot(coming[word] != 0)} << 32 * word;
  }

  // From the thread's first column on.
  __device__ __forceinline__ Bits own(int lane) const { return bits >> first_column(lane); }

  // -inf for the scores of keys that do not exist.
  __device__ __forceinline__ void hide_others(int lane, typename Shape::Scores& scores) const {
    if (~bits == 0) return;  // the same for the whole warp
    const Bits mine = own(lane);
    for_each(scores, [&](float& score, Own, Own column) {
      if (!is_seen(mine, column)) score = -INFINITY;
    });
  }
};

// Whether the thread's own rows, which are queries, see a key of the grid that exists: bit Own. By all lanes.
//
// A row that sees none has a result that is known. It looks like one whose scores have all become -inf, but that one is
// a suspect, and so many rows as padding may have would take long by their definition.
template <class Shape>
__device__ __forceinline__ uint32_t rows_with_keys(const Warp<Shape>& warp, const uint8_t* mask) {
  const Tiling& tiling = warp.geometry.tiling;
  ExistingKeys<Shape> existing{mask};
  Walk walk = make_walk(tiling, warp.block.axis);
  uint32_t rows = 0;
#pragma unroll 1
  for (int left = walk.total(); left > 0; --left) {
    const Box box = column_box(tiling, warp.block, walk);
    walk.step();
    existing.load(warp.geometry, warp.block, box);
    existing.land();
    for_each_own<Shape::kThreadRows>([&](Own row) {
      if ((columns_seen(warp, box.start, row) & existing.own(warp.lane)) != 0) rows |= 1u << row;
    });
  }
  rows |= shuffle_xor(rows, 1);
  return rows | shuffle_xor(rows, 2);  // the four lanes that share the rows
}

// Zeros for the sums of the thread's own rows, which are keys, where these do not exist.
template <class Shape, int kFeatureTiles>
__device__ __forceinline__ void clear_masked(const Warp<Shape>& warp, const uint8_t* mask,
                                             float (&dkey)[Shape::kRowTiles][kFeatureTiles][4],
                                             float (&dvalue)[Shape::kRowTiles][kFeatureTiles][4]) {
  if (mask == nullptr) return;
  for_each_row(warp, 1, [&](Own number, int64_t row) {
    if (mask[row - warp.block.head] != 0) return;
    const auto clear_pair = [](float& first, float& second, Own) { first = second = 0; };
    for_each_pair(dkey, number, clear_pair);
    for_each_pair(dvalue, number, clear_pair);
  });
}

}  // namespace jax_na::cuda
