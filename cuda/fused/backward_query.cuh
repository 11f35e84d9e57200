// SPDX-License-Identifier: Apache-2.0
// Gradient of the queries. Rows are queries, the columns that stream by are keys and values:
//
//     P = exp(S - LSE),   dS = P (dO V^T - delta),   dQ = scale dS K
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/shape.cuh"
#include "cuda/block/store.cuh"
#include "cuda/block/tokens.cuh"
#include "cuda/block/warp.cuh"
#include "cuda/fused/keys.cuh"
#include "cuda/fused/params.cuh"
#include "cuda/fused/rows.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Shared memory: the block's queries and their dO, buffers of keys and of values, windows.
template <class Shape>
struct BackwardQueryShared {
  static constexpr int kQuery = 0, kDout = kQuery + Shape::kRowTileBytes, kKey = kDout + Shape::kRowTileBytes,
                       kValue = kKey + Shape::kStages * Shape::kColumnTileBytes,
                       kWindows = kValue + Shape::kStages * Shape::kColumnTileBytes,
                       kBytes = kWindows + Shape::kWindowBytes + Shape::kInnerBytes;
};

template <class Shape>
__device__ __forceinline__ Warp<Shape> backward_query_warp(const BackwardParams& params, const Block& block) {
  char* windows = dynamic_shared() + BackwardQueryShared<Shape>::kWindows;
  return this_warp<Shape>(params.geometry, block, windows);
}

// A block of queries on its walk over keys: calls body(scores that have become dS, tile of keys, box, whether it is of
// the grid) for each box.
//
// What a query does not see may turn all of its dS into NaN: its own gradient then is a suspect. But the bias' gradient
// is a sum over queries (kForBias): there dS is 0 where nothing is seen, and of queries whose LSE is not exact.
// Returns which of the thread's own rows are such queries, bit Own.
template <class Shape, bool kIsExtended, bool kForBias, class Body>
__device__ __forceinline__ uint32_t for_each_score_gradient(const BackwardParams& params, const Warp<Shape>& warp,
                                                            const Body& body) {
  using Shared = BackwardQueryShared<Shape>;
  using Tile = typename Shape::Tile;
  const Geometry& geometry = params.geometry;
  const Block& block = warp.block;
  char* shared = dynamic_shared();
  const Tile query{shared + Shared::kQuery}, dout{shared + Shared::kDout};
  const ColumnTiles<Shape> tiles{shared + Shared::kKey};

  load_rows<Shape>(geometry, block, {params.query, params.dout}, {query, dout});
  warp.windows.template store<Side::kQueries>(geometry, block, seen_by_missing(geometry));
  block_sync();
  warp.store_inner();
  KeyStream<Shape, kIsExtended> keys(warp, params, tiles);
  const int total = keys.total();
  if (Shape::kStages > 1) keys.load(0);

  float lse[Shape::kThreadRows] = {}, delta[Shape::kThreadRows] = {};  // 0 for rows that do not exist: their dS is 0
  uint32_t inexact = 0;
  for_each_row(warp, params.query.heads, [&](Own number, int64_t row) {
    lse[number] = exponent_of(params.lse[row]);
    const bool is_empty = kIsExtended && params.lse[row] == -INFINITY;  // by a mask: there may be many such rows
    if (kForBias && !is_empty && !has_exact_lse(params.lse[row])) {
      lse[number] = INFINITY;
      inexact |= 1u << number;
    }
    delta[number] = params.delta[row];
  });

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

    typename Shape::Scores scores, dweights;
    const Tile key = tiles.at(0, stage), value = tiles.at(1, stage);
    warp.multiply(scores, query, key);
    keys.finish(warp, step, box, scores);
    warp.multiply(dweights, dout, value);
    for_each(scores, [&](float& score, Own row, Own column) {
      const bool counts = !kForBias || (score != -INFINITY && lse[row] != INFINITY);
      const float dscore = exp2_approx(score * geometry.factor - lse[row]) * (at(dweights, row, column) - delta[row]);
      score = counts ? dscore : 0;
    });
    body(scores, key, box, !kIsExtended || step < keys.boxes);
  }
  cp_async_wait<0>();  // copies of a block without columns
  return inexact;
}

template <class Shape, bool kIsExtended>
__global__ void __launch_bounds__(Shape::kThreads, Shape::min_blocks(kIsExtended))
    fused_backward_query_kernel(const __grid_constant__ BackwardParams params) {
  const Geometry& geometry = params.geometry;
  Block block;
  if (!find_block<Side::kQueries>(geometry, blockIdx.x, params.query.heads, block)) return;
  const Warp<Shape> warp = backward_query_warp<Shape>(params, block);
  float dquery[Shape::kRowTiles][Shape::kFeatures / 8][4] = {};
  for_each_score_gradient<Shape, kIsExtended, false>(
      params, warp, [&](const typename Shape::Scores& dscores, typename Shape::Tile key, const Box&, bool) {
        warp.add_weighted(dquery, dscores, key);
      });
  // Small windows end too soon to pay for the second search, wide rows leave no room for it.
  if constexpr (Shape::kWarps > 1 && Shape::kRowBytes <= 256)
    block = find_block_again<Side::kQueries>(geometry, params.query.heads);
  const Suspects suspects = store_rows(warp, {params.dquery, params.query.heads, params.query.features}, dquery,
                                       block.complete ? params.scale : NAN);
  char* room = dynamic_shared() + BackwardQueryShared<Shape>::kQuery + warp.first_row * Shape::kRowBytes;
  if (block.complete && suspects.some())
    for_each_suspect(geometry, block, params.query.heads, suspects, [&](int64_t row) {
      find_query_gradient<typename Shape::Element, kIsExtended>(params, room, row);
    });
}

}  // namespace jax_na::cuda
