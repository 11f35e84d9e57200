// SPDX-License-Identifier: Apache-2.0
// Gradient of the queries, and of the bias. Rows are queries, the columns that stream by are keys and values:
//
//     P = exp(S - LSE),   dS = P (dO V^T - delta),   dQ = scale dS K,   d_rpb = sums of dS
//
// Nothing is added by two blocks to the same place: results do not depend on the order of execution.
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

// A block of queries on its walk over keys: calls body(scores that have become dS, tile of keys, box) for each box.
//
// What a query does not see may turn all of its dS into NaN: its own gradient then is a suspect. But the bias' gradient
// is a sum over queries (kForBias): there dS is 0 where nothing is seen, and of queries whose LSE is not exact.
// Returns whether one of the thread's rows is such a query.
template <class Shape, bool kHasTokens, bool kForBias, class Body>
__device__ __forceinline__ bool for_each_score_gradient(const BackwardParams& params, const Warp<Shape>& warp,
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
  KeyStream<Shape, kHasTokens> keys(warp, params.key, params.value, params.tokens, tiles);
  const int total = keys.total();
  if (Shape::kStages > 1) keys.load(0);

  float lse[Shape::kThreadRows] = {}, delta[Shape::kThreadRows] = {};  // 0 for rows that do not exist: their dS is 0
  bool some_inexact = false;
  for_each_row(warp, params.query.heads, [&](Own number, int64_t row) {
    lse[number] = exponent_of(params.lse[row]);
    if (kForBias && !has_exact_lse(params.lse[row])) {
      lse[number] = INFINITY;
      some_inexact = true;
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
    body(scores, key, box);
  }
  cp_async_wait<0>();  // copies of a block without columns
  return some_inexact;
}

template <class Shape, bool kHasTokens>
__global__ void __launch_bounds__(Shape::kThreads, Shape::min_blocks(kHasTokens))
    fused_backward_query_kernel(const __grid_constant__ BackwardParams params) {
  const Geometry& geometry = params.geometry;
  Block block;
  if (!find_block<Side::kQueries>(geometry, blockIdx.x, params.query.heads, block)) return;
  const Warp<Shape> warp = backward_query_warp<Shape>(params, block);
  float dquery[Shape::kRowTiles][Shape::kFeatures / 8][4] = {};
  for_each_score_gradient<Shape, kHasTokens, false>(
      params, warp, [&](const typename Shape::Scores& dscores, typename Shape::Tile key, const Box&) {
        warp.add_weighted(dquery, dscores, key);
      });
  // Small windows end too soon to pay for the second search, wide rows leave no room for it.
  if constexpr (Shape::kWarps > 1 && Shape::kRowBytes <= 256)
    block = find_block_again<Side::kQueries>(geometry, params.query.heads);
  const Suspects suspects = store_rows(warp, {params.dquery, params.query.heads, params.query.features}, dquery,
                                       block.complete ? params.scale : NAN);
  char* room = dynamic_shared() + BackwardQueryShared<Shape>::kQuery + warp.first_row * Shape::kRowBytes;
  if (block.complete && suspects.some())
    for_each_suspect(geometry, block, params.query.heads, suspects,
                     [&](int64_t row) { find_query_gradient<typename Shape::Element>(params, room, row); });
}

// The bias, which additional tokens do not have: a block adds up dS over its part of the query tiles of a head, in its
// own table. Entry by entry: one thread adds all pairs of a tile that have the same (key - query).
template <class Shape>
struct DrpbShared {
  static constexpr int kPitch = Shape::kColumns + 1;  // floats between rows of dS
  static constexpr int kGradient = BackwardQueryShared<Shape>::kBytes,
                       kBytes = kGradient + Shape::kRows * kPitch * static_cast<int>(sizeof(float));
};

// The pairs of a tile and a box whose column lies at one distance from the row: along each axis rows [first, stop),
// each with the column `shift` later.
struct Diagonal {
  int first[kAxes], stop[kAxes], shift[kAxes];
};

// The sum of dS over a diagonal, in a fixed order.
template <class Shape>
__device__ __forceinline__ float diagonal_sum(const Tiling& tiling, const Diagonal& pairs, const float* dscores) {
  float sum = 0;
  for (int z = pairs.first[0]; z < pairs.stop[0]; ++z)
    for (int y = pairs.first[1]; y < pairs.stop[1]; ++y)
      for (int x = pairs.first[2]; x < pairs.stop[2]; ++x) {
        const int row = (((z << tiling.rows[1]) + y) << tiling.rows[2]) + x;
        const int plane = ((z + pairs.shift[0]) << tiling.columns[1]) + y + pairs.shift[1];
        const int column = (plane << tiling.columns[2]) + x + pairs.shift[2];
        sum += dscores[row * DrpbShared<Shape>::kPitch + column];
      }
  return sum;
}

// Adds the sums of one tile of dS along equal distances to the block's table.
template <class Shape>
__device__ __forceinline__ void add_distances(const Warp<Shape>& warp, const Box& box, const float* dscores,
                                              float* table) {
  const Problem& problem = warp.geometry.problem;
  const Tiling& tiling = warp.geometry.tiling;
  const Strides stride = bias_strides(problem);
  int count[kAxes], entries = 1;  // distances from -(rows - 1) to columns - 1
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) {
    count[axis] = (1 << tiling.rows[axis]) + (1 << tiling.columns[axis]) - 1;
    entries *= count[axis];
  }
  for (int i = threadIdx.x; i < entries; i += Shape::kThreads) {
    const int distance[kAxes] = {i / (count[1] * count[2]), i / count[2] % count[1], i % count[2]};
    int entry = 0;
    Diagonal pairs;
    bool exists = true;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      const int rows = 1 << tiling.rows[axis], shift = distance[axis] - rows + 1;  // column - row inside the boxes
      pairs.shift[axis] = shift;
      pairs.first[axis] = max(0, -shift);
      pairs.stop[axis] = min(rows, (1 << tiling.columns[axis]) - shift);
      const int window = problem.axis[axis].kernel_size;
      const int along = box.start[axis] - warp.block.axis[axis].origin + shift + window - 1;
      exists = exists && along >= 0 && along < 2 * window - 1;
      entry += along * stride.of[axis];
    }
    if (exists) table[entry] += diagonal_sum<Shape>(tiling, pairs, dscores);
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::min_blocks(false))
    fused_backward_drpb_kernel(const __grid_constant__ BackwardParams params) {
  const Geometry& geometry = params.geometry;
  const BiasPart mine(params);
  float* shared = reinterpret_cast<float*>(dynamic_shared() + DrpbShared<Shape>::kGradient);
  for (int i = threadIdx.x; i < bias_entries(geometry.problem); i += Shape::kThreads) mine.table[i] = 0;

  bool some_inexact = false;
  for (uint32_t tile = mine.part; tile < mine.tiles; tile += params.drpb_parts) {
    block_sync();  // nobody reads the tile before
    Block block;
    if (!find_block<Side::kQueries>(geometry, mine.index(params, tile), params.query.heads, block)) continue;
    const Warp<Shape> warp = backward_query_warp<Shape>(params, block);
    some_inexact |= for_each_score_gradient<Shape, false, true>(
        params, warp, [&](const typename Shape::Scores& dscores, typename Shape::Tile, const Box& box) {
          for_each(dscores, [&](float value, Own row, Own column) {
            shared[warp.row(row) * DrpbShared<Shape>::kPitch + warp.column(column)] = value;
          });
          block_sync();
          add_distances(warp, box, shared, mine.table);
          block_sync();
        });
    if (!block.complete && threadIdx.x == 0) mine.table[0] = NAN;
  }

  // One warp after the other: the order of the sums is always the same.
  static_assert(Shape::kRowTiles == 1);
#pragma unroll 1
  for (int warp = 0; warp < Shape::kWarps; ++warp) {
    block_sync();
    const int first_row = 16 * warp;
    char* room = dynamic_shared() + BackwardQueryShared<Shape>::kQuery + first_row * Shape::kRowBytes;
    if (threadIdx.x / 32 == warp && warp_any(some_inexact))
      add_inexact_rows<typename Shape::Element>(params, room, first_row);
  }
}

}  // namespace jax_na::cuda
