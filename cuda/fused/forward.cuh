// SPDX-License-Identifier: Apache-2.0
// Fused attention, forward, for tensor cores with mma.sync (compute capability 8.0 and later):
//
//     S = scale Q K^T + bias,   m = max S,   P = exp(S - m),   O = P V / sum P,   LSE = m + log sum P
//
// with m, the sum and O corrected from box of keys to box of keys (online softmax).
#pragma once

#include <math.h>
#include <stdint.h>

#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/shape.cuh"
#include "cuda/block/softmax.cuh"
#include "cuda/block/store.cuh"
#include "cuda/block/tokens.cuh"
#include "cuda/block/warp.cuh"
#include "cuda/fused/key_mask.cuh"
#include "cuda/fused/keys.cuh"
#include "cuda/fused/params.cuh"
#include "cuda/fused/rows.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Shared memory: the block's queries, buffers of keys and of values, windows.
template <class Shape>
struct ForwardShared {
  static constexpr int kQuery = 0, kKey = kQuery + Shape::kRowTileBytes,
                       kValue = kKey + Shape::kStages * Shape::kColumnTileBytes,
                       kWindows = kValue + Shape::kStages * Shape::kColumnTileBytes,
                       kBytes = kWindows + Shape::kWindowBytes + Shape::kInnerBytes;
};

// The scale of rows that a mask leaves no key: their output is 0.
template <class Shape>
__device__ __forceinline__ void scale_empty_rows(const Warp<Shape>& warp, const ForwardParams& params,
                                                 const OnlineSoftmax<Shape::kThreadRows>& softmax, float valid,
                                                 float (&scale)[Shape::kThreadRows]) {
  bool some = false;
  for_each_own<Shape::kThreadRows>([&](Own row) { some = some || softmax.sum[row] == 0; });
  if (params.key_mask == nullptr || params.tokens.count > 0 || !warp_any(some)) return;
  const uint32_t rows = rows_with_keys(warp, params.key_mask);
  for_each_own<Shape::kThreadRows>([&](Own row) {
    if ((rows >> row & 1) == 0) scale[row] = 0 * valid;
  });
}

template <class Shape, bool kIsExtended>
__global__ void __launch_bounds__(Shape::kThreads, Shape::min_blocks(kIsExtended))
    fused_forward_kernel(const __grid_constant__ ForwardParams params) {
  using Shared = ForwardShared<Shape>;
  using Tile = typename Shape::Tile;
  const Geometry& geometry = params.geometry;
  Block block;
  if (!find_block<Side::kQueries>(geometry, blockIdx.x, params.query.heads, block)) return;

  char* shared = dynamic_shared();
  const Tile query{shared + Shared::kQuery};
  const ColumnTiles<Shape> tiles{shared + Shared::kKey};
  const Warp<Shape> warp = this_warp<Shape>(geometry, block, shared + Shared::kWindows);

  load_rows<Shape>(geometry, block, {params.query}, {query});
  warp.windows.template store<Side::kQueries>(geometry, block, seen_by_missing(geometry));
  block_sync();
  warp.store_inner();
  KeyStream<Shape, kIsExtended> keys(warp, params, tiles);
  const int total = keys.total();
  if (Shape::kStages > 1) keys.load(0);

  OnlineSoftmax<Shape::kThreadRows> softmax;
  softmax.start();
  float out[Shape::kRowTiles][Shape::kFeatures / 8][4] = {};
  for (int step = 0; step < total; ++step) {
    if (Shape::kStages == 1) {
      block_sync();  // nobody reads the box before
      keys.load(0);
    }
    cp_async_wait<0>();
    block_sync();  // this box has landed, and nobody reads the one before
    const int stage = step % Shape::kStages;
    const Box box = keys.next_box();
    if (Shape::kStages > 1 && step + 1 < total) keys.load((step + 1) % Shape::kStages);
    if (keys.is_empty()) continue;

    typename Shape::Scores scores;
    const Tile key = tiles.at(0, stage), value = tiles.at(1, stage);
    warp.multiply(scores, query, key);
    keys.finish(warp, step, box, scores);
    softmax.update(scores, out, geometry.factor);
    warp.add_weighted(out, scores, value);
  }
  cp_async_wait<0>();  // copies of a block without columns

  // Costs short loops more than it gives.
  if constexpr (Shape::kRowTiles > 1) block = find_block_again<Side::kQueries>(geometry, params.query.heads);
  float scale[Shape::kThreadRows];
  const float valid = block.complete ? 1.f : NAN;  // a window reaches beyond the keys present: say so
  for_each_own<Shape::kThreadRows>([&](Own row) {
    softmax.sum[row] = row_sum(softmax.sum[row]);
    scale[row] = softmax.sum[row] < INFINITY ? valid / softmax.sum[row] : NAN;
  });
  if constexpr (kIsExtended) scale_empty_rows(warp, params, softmax, valid, scale);
  const Suspects suspects = store_rows(warp, {params.out, params.query.heads, params.value.features}, out, scale);
  if (warp.lane % 4 == 0)  // one of the four threads of a row
    for_each_row(warp, params.query.heads, [&](Own number, int64_t row) {
      params.lse[row] = valid * kLn2 * (softmax.top[number] + log2f(softmax.sum[number]));
    });
  char* room = shared + Shared::kQuery + warp.first_row * Shape::kRowBytes;  // of the warp's own queries
  if (block.complete && suspects.some())
    for_each_suspect(geometry, block, params.query.heads, suspects,
                     [&](int64_t row) { attend_again<typename Shape::Element, kIsExtended>(params, room, row); });
}

}  // namespace jax_na::cuda
