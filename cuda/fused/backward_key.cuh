// SPDX-License-Identifier: Apache-2.0
// Gradients of keys and values. Rows are keys, the columns that stream by are the queries that see them (the inverse
// windows), with their dO, LSE and delta, for every query head that shares the key head:
//
//     P^T = exp(S^T - LSE),   dV = P^T dO,   dK = scale dS^T Q   with   dS^T = P^T (V dO^T - delta)
//
// A key's sums are made by one block in a fixed order. Rows of more than 256 bytes are split over kParts blocks, which
// compute the same scores and keep a part of the features each: the sums of all would not fit into the registers.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/scores.cuh"
#include "cuda/block/shape.cuh"
#include "cuda/block/store.cuh"
#include "cuda/block/tokens.cuh"
#include "cuda/block/warp.cuh"
#include "cuda/fused/key_mask.cuh"
#include "cuda/fused/params.cuh"
#include "cuda/fused/rows.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Shared memory: the block's keys and values, buffers of queries, of dO, of LSE and of delta, windows.
template <class Shape>
struct BackwardKeyShared {
  static constexpr int kColumnBytes = Shape::kColumns * static_cast<int>(sizeof(float));
  static constexpr int kKey = 0, kValue = kKey + Shape::kRowTileBytes, kQuery = kValue + Shape::kRowTileBytes,
                       kDout = kQuery + Shape::kStages * Shape::kColumnTileBytes,
                       kLse = kDout + Shape::kStages * Shape::kColumnTileBytes,
                       kDelta = kLse + Shape::kStages * kColumnBytes, kWindows = kDelta + Shape::kStages * kColumnBytes,
                       kBytes = kWindows + Shape::kWindowBytes + Shape::kInnerBytes;
};

// The boxes of queries that stream past a block of keys: all boxes of one query head, then of the next.
template <class Shape>
struct QueryStream {
  using Shared = BackwardKeyShared<Shape>;

  const BackwardParams& params;
  const Block& block;
  char* shared;
  int repeats;  // query heads
  int boxes;    // of one head
  Walk walk;
  int repeat = 0;  // of the box that `walk` is at

  __device__ __forceinline__ QueryStream(const BackwardParams& params_, const Block& block_, char* shared_)
      : params(params_),
        block(block_),
        shared(shared_),
        repeats(query_heads_per_kv_head(params_.geometry.problem)),
        walk(first()) {
    boxes = walk.total();
  }

  __device__ __forceinline__ Walk first() const { return make_walk(params.geometry.tiling, block.axis); }
  __device__ __forceinline__ int total() const { return boxes * repeats; }
  __device__ __forceinline__ int head() const { return block.head * repeats + repeat; }
  __device__ __forceinline__ Box box() const { return column_box(params.geometry.tiling, block, walk); }
  __device__ __forceinline__ ColumnTiles<Shape> tiles() const { return {shared + Shared::kQuery}; }
  __device__ __forceinline__ float* lse(int stage) const { return statistics(Shared::kLse, stage); }
  __device__ __forceinline__ float* delta(int stage) const { return statistics(Shared::kDelta, stage); }

  // From box number `step` to the next.
  __device__ __forceinline__ void advance(int step) {
    if ((step + 1) % boxes == 0) {
      walk = first();
      ++repeat;
    } else {
      walk.step();
    }
  }

  // Starts copying the box that `walk` is at.
  __device__ __forceinline__ void load(int stage) const {
    load_box<Shape>(params.geometry, block, box(), {params.query, params.dout}, head(),
                    {tiles().at(0, stage), tiles().at(1, stage)});
    load_statistics(lse(stage), delta(stage));
  }

 private:
  __device__ __forceinline__ float* statistics(int offset, int stage) const {
    return reinterpret_cast<float*>(shared + offset + stage * Shared::kColumnBytes);
  }

  // LSE, in the units of the exponents, and delta of the box; 0 where there are no queries: their dS is 0.
  __device__ __forceinline__ void load_statistics(float* to_lse, float* to_delta) const {
    const Geometry& geometry = params.geometry;
    const Box here = box();
    for (int i = threadIdx.x; i < Shape::kColumns; i += Shape::kThreads) {
      const int64_t token = token_of(geometry, block.columns, block, here, geometry.tiling.columns, i);
      const int64_t row = (block.batch * block.columns.tokens() + token) * params.query.heads + head();
      to_lse[i] = token < 0 ? 0 : exponent_of(params.lse[row]);
      to_delta[i] = token < 0 ? 0 : params.delta[row];
    }
  }
};

template <class Shape, int kParts>
__global__ void __launch_bounds__(Shape::kThreads, 8 / Shape::kWarps)
    fused_backward_key_kernel(const __grid_constant__ BackwardParams params) {
  using Shared = BackwardKeyShared<Shape>;
  using Tile = typename Shape::Tile;
  constexpr int kFeatureTiles = Shape::kFeatures / 8 / kParts, kPartChunks = Shape::kRowBytes / 16 / kParts;
  const Geometry& geometry = params.geometry;
  const int part = static_cast<int>(blockIdx.x % kParts);
  Block block;
  if (!find_block<Side::kKeys>(geometry, blockIdx.x / kParts, params.key.heads, block)) return;

  char* shared = dynamic_shared();
  const Tile key{shared + Shared::kKey}, value{shared + Shared::kValue};
  const Warp<Shape> warp = this_warp<Shape>(geometry, block, shared + Shared::kWindows);

  load_rows<Shape>(geometry, block, {params.key, params.value}, {key, value});
  warp.windows.template store<Side::kKeys>(geometry, block, seen_by_missing(geometry));
  block_sync();
  warp.store_inner();
  QueryStream<Shape> queries(params, block, shared);
  const int total = queries.total();
  queries.load(0);

  float dkey[Shape::kRowTiles][kFeatureTiles][4] = {}, dvalue[Shape::kRowTiles][kFeatureTiles][4] = {};
  for (int step = 0; step < total; ++step) {
    cp_async_wait<0>();
    block_sync();  // this box has landed, and nobody reads the one before
    const int stage = step % Shape::kStages, query_head = queries.head();
    const Box box = queries.box();
    queries.advance(step);
    if (Shape::kStages > 1 && step + 1 < total) queries.load((step + 1) % Shape::kStages);

    typename Shape::Scores weights, dscores;
    const Tile query = queries.tiles().at(0, stage), dout = queries.tiles().at(1, stage);
    const float *lse = queries.lse(stage), *delta = queries.delta(stage);
    warp.multiply(weights, key, query);
    finish_scores<Side::kKeys>(warp, box.start, query_head, weights);
    for_each(weights, [&](float& weight, Own, Own column) {
      weight = exp2_approx(weight * geometry.factor - lse[warp.column(column)]);
    });
    warp.add_weighted(dvalue, weights, dout, part * kPartChunks);
    warp.multiply(dscores, value, dout);
    for_each(dscores, [&](float& dscore, Own row, Own column) {
      dscore = at(weights, row, column) * (dscore - delta[warp.column(column)]);
    });
    warp.add_weighted(dkey, dscores, query, part * kPartChunks);

    if (Shape::kStages == 1 && step + 1 < total) {
      block_sync();
      queries.load(0);
    }
  }
  cp_async_wait<0>();  // copies of a block without columns

  // Only of wide rows the sums leave no register for what the loop does not need of the block.
  if constexpr (Shape::kRowBytes >= 256 && Shape::kWarps > 1)
    find_block<Side::kKeys>(geometry, renewed(blockIdx.x) / kParts, params.key.heads, block);
  clear_masked(warp, params.key_mask, dkey, dvalue);
  const int first_feature = part * kFeatureTiles * 8;
  Suspects suspects =
      store_rows(warp, {params.dkey, params.key.heads, params.key.features, first_feature}, dkey, params.scale);
  suspects.rows |=
      store_rows(warp, {params.dvalue, params.key.heads, params.value.features, first_feature}, dvalue, 1.f).rows;
  const FeatureRange part_features{first_feature, first_feature + kFeatureTiles * 8};
  char* room = shared + Shared::kKey + warp.first_row * Shape::kRowBytes;
  if (block.complete && suspects.some())
    for_each_suspect(geometry, block, params.key.heads, suspects, [&](int64_t row) {
      find_key_gradients<typename Shape::Element, true>(params, room, row, part_features);
    });
}

}  // namespace jax_na::cuda
