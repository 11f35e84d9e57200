// SPDX-License-Identifier: Apache-2.0
// Weighted sums of values, NN: out[q] = sum_j weights[q, j] value[key(q, j)].
//
// Rows of weights are copied to shared memory in pieces of 16 bytes, phase by phase; the weights of a tile of queries
// and a box of keys are gathered from there, 0 where a query does not see a key.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/scores.cuh"
#include "cuda/block/shape.cuh"
#include "cuda/block/store.cuh"
#include "cuda/block/tokens.cuh"
#include "cuda/block/warp.cuh"
#include "cuda/gemm/params.cuh"
#include "cuda/gemm/rows.cuh"
#include "cuda/gemm/staged.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/element.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// The rows of weights of one warp, one buffer per phase under way.
template <class Shape>
struct StagedWeights {
  using Element = typename Shape::Element;

  const GemmParams& params;
  const Warp<Shape>& warp;
  Element* base;

  __device__ __forceinline__ Element* row(int number, int buffer) const {
    return base + (buffer * Shape::kRows + number) * params.staging.slots;
  }

  // Starts copying the slots of the phase that starts at `start`.
  __device__ __forceinline__ void load(const int (&start)[kAxes], int buffer) const {
    constexpr int kVector = per_vector<Element>();
    const int last = params.staging.axis;
    int next[kAxes];
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis)
      next[axis] = start[axis] + (axis == last ? 1 << params.geometry.tiling.columns[axis] : 0);
    for (int r = warp.lane / kLanesPerRow; r < 16 * Shape::kRowTiles; r += kRowsAtOnce) {
      const int number = warp.first_row + r;
      const int64_t index = row_index(params.geometry, warp.block, params.queries.heads, number);
      if (index < 0) continue;
      int seen[kAxes];
      read_starts(warp.windows, number, seen);
      const int from = slots_before(params, last, start, seen) / kVector;
      const int until = ceil_div(last < 0 ? params.pitch : slots_before(params, last, next, seen), kVector);
      const auto* weights = static_cast<const Element*>(params.weights) + index * params.pitch;
      for (int v = from + warp.lane % kLanesPerRow; v < until; v += kLanesPerRow)
        cp_async16(shared_address(row(number, buffer) + (v - from) * kVector), weights + v * kVector, true);
    }
  }

  // Weights of the box at `start`, of the phase that started at `phase`.
  __device__ __forceinline__ void gather(const int (&start)[kAxes], const int (&phase)[kAxes], int buffer,
                                         const ColumnBits<Shape> (&bits)[Shape::kThreadRows],
                                         typename Shape::Scores& weights) const {
    int from[Shape::kThreadRows];
    staged_rows<Element>(params, warp, start, phase, from);
    const Element* rows = row(0, buffer);
    for_each_column(params, warp, [&](Own column, int slots) {
      for_each_own<Shape::kThreadRows>([&](Own number) {
        float& weight = at(weights, number, column);
        weight = 0;
        if (is_seen(bits[number], column)) weight = widen(rows[from[number] + slots]);
      });
    });
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, min_blocks<Shape, Pass::kAv>())
    gemm_av_kernel(const __grid_constant__ GemmParams params) {
  using Tile = typename Shape::Tile;
  using Element = typename Shape::Element;
  const Geometry& geometry = params.geometry;
  const int slices = slices_of<Shape>(params);
  const int first_feature = static_cast<int>(blockIdx.x % slices) * Shape::kFeatures;
  Block block;
  if (!find_block<Side::kQueries>(geometry, blockIdx.x / slices, params.queries.heads, block)) return;

  // Shared memory: boxes of values, windows, weights.
  char* shared = dynamic_shared();
  char* windows = shared + Shape::kStages * Shape::kColumnTileBytes;
  const Warp<Shape> warp = this_warp<Shape>(geometry, block, windows);
  const int kv_head = block.head / query_heads_per_kv_head(geometry.problem);
  const StagedWeights<Shape> staged{params, warp, reinterpret_cast<Element*>(windows + Shape::kWindowBytes)};

  auto value_tile = [&](int stage) { return Tile{shared + stage * Shape::kColumnTileBytes}; };
  auto load = [&](const Box& box, int stage) {
    load_tokens<Shape, Shape::kColumns>(BoxTokens(geometry, block.columns, block, box), geometry.tiling.columns,
                                        {params.keys}, kv_head, {value_tile(stage)}, first_feature);
  };

  warp.windows.template store<Side::kQueries>(geometry, block, 0);
  block_sync();
  Walk walk = make_walk(geometry.tiling, block.axis);
  const int total = walk.total();
  Box box = column_box(geometry.tiling, block, walk), phase = box;
  int buffer = 0;
  load(box, 0);
  if (total > 0) staged.load(phase.start, buffer);
  cp_async_commit();

  float out[Shape::kRowTiles][Shape::kFeatures / 8][4] = {};
  for (int step = 0; step < total; ++step) {
    cp_async_wait<0>();
    block_sync();  // this box has landed, and nobody reads the one before
    const int stage = step % Shape::kStages;
    const Walk here = walk;
    walk.step();
    const Box next = column_box(geometry.tiling, block, walk);
    const bool changes = step + 1 < total && starts_phase(params, here, walk);
    if (step + 1 < total) load(next, (step + 1) % Shape::kStages);
    if (changes) staged.load(next.start, buffer ^ 1);
    cp_async_commit();

    ColumnBits<Shape> bits[Shape::kThreadRows];
    if (find_columns(warp, box.start, bits)) {
      typename Shape::Scores weights;
      staged.gather(box.start, phase.start, buffer, bits, weights);
      warp.add_weighted(out, weights, value_tile(stage));
    }
    box = next;
    if (changes) phase = next, buffer ^= 1;
  }
  cp_async_wait<0>();  // copies of a block without columns

  const float valid = block.complete ? 1.f : NAN;  // a window reaches beyond the keys present: say so
  const Suspects suspects =
      store_rows(warp, {params.out, params.queries.heads, params.queries.features, first_feature}, out, valid);
  if (block.complete && suspects.some())
    for_each_suspect(geometry, block, params.queries.heads, suspects, [&](int64_t row) {
      sum_again<Element, Side::kQueries>(params, row, {first_feature, first_feature + Shape::kFeatures});
    });
}

}  // namespace jax_na::cuda
