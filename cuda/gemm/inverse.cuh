// SPDX-License-Identifier: Apache-2.0
// Weighted sums over the inverse neighborhood, IN: out[k] = sum over the queries q that see k of weights[q, slot] x[q].
//
// Rows are keys, the columns that stream by are the queries that see them, for every query head that shares the key
// head. With each box of queries come their weights of this tile's keys, in pieces of 16 bytes; the transposed fragment
// is gathered from there. A key's sum is made by one block in a fixed order.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "common/window.h"
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

// The rows of weights of the queries of a box.
template <class Shape>
struct StagedColumns {
  using Element = typename Shape::Element;

  const GemmParams& params;
  const Warp<Shape>& warp;
  int* begin;     // [kStages, kColumns]: where in `base` slots of the tile's first key would be
  Element* base;  // [kStages, kColumns, staging.slots]

  // Starts copying the weights of a box of queries, all of one head.
  __device__ __forceinline__ void load(const Box& box, int head, int stage) const {
    constexpr int kVector = per_vector<Element>();
    const Geometry& geometry = params.geometry;
    const Block& block = warp.block;
    const BoxTokens tokens(geometry, block.columns, block, box);
    const int lane = warp.lane;
    for (int i = threadIdx.x / kLanesPerRow; i < Shape::kColumns; i += Shape::kThreads / kLanesPerRow) {
      bool exists = true;
      const int token = tokens.index(geometry.tiling.columns, i, exists);
      int origin[kAxes], start[kAxes], from = 0, last = 0;
#pragma unroll
      for (int axis = 0; axis < kAxes; ++axis) {
        const Extent& extent = block.axis[axis];
        const int position = box.start[axis] + inside_box(geometry.tiling.columns, i, axis);
        const Range seen = window(geometry.problem.axis[axis], extent.length, min(position, extent.length - 1));
        origin[axis] = extent.origin, start[axis] = seen.start;
        const int low = max(extent.rows.start, seen.start), high = min(extent.rows.stop, seen.stop);
        exists = exists && low < high;
        from += (low - seen.start) * params.slot_stride[axis];
        last += (high - 1 - seen.start) * params.slot_stride[axis];
      }
      const int first = from / kVector, row = (stage * Shape::kColumns + i) * params.staging.slots;
      if (lane % kLanesPerRow == 0)
        begin[stage * Shape::kColumns + i] = row + slot_of(params, origin, start) - first * kVector;
      if (!exists) continue;
      const auto* weights =
          static_cast<const Element*>(params.weights) +
          ((block.batch * block.columns.tokens() + token) * params.queries.heads + head) * params.pitch;
      for (int v = first + lane % kLanesPerRow; v <= last / kVector; v += kLanesPerRow)
        cp_async16(shared_address(base + row + (v - first) * kVector), weights + v * kVector, true);
    }
  }

  __device__ __forceinline__ void gather(int stage, const ColumnBits<Shape> (&bits)[Shape::kThreadRows],
                                         typename Shape::Scores& weights) const {
    const int* here = begin + stage * Shape::kColumns;
    int slots[Shape::kThreadRows];
    for_each_own<Shape::kThreadRows>(
        [&](Own row) { slots[row] = slot_inside(params, params.geometry.tiling.rows, warp.row(row)); });
    for_each_own<Shape::kThreadColumns>([&](Own column) {
      const int of_column = here[warp.column(column)];
      for_each_own<Shape::kThreadRows>([&](Own row) {
        float& weight = at(weights, row, column);
        weight = 0;
        if (is_seen(bits[row], column)) weight = widen(base[of_column + slots[row]]);
      });
    });
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, min_blocks<Shape, Pass::kInverse>())
    gemm_inverse_kernel(const __grid_constant__ GemmParams params) {
  using Tile = typename Shape::Tile;
  using Element = typename Shape::Element;
  const Geometry& geometry = params.geometry;
  const int slices = slices_of<Shape>(params);
  const int first_feature = static_cast<int>(blockIdx.x % slices) * Shape::kFeatures;
  Block block;
  if (!find_block<Side::kKeys>(geometry, blockIdx.x / slices, params.keys.heads, block)) return;

  // Shared memory: boxes of queries' features, windows, begins of rows, weights.
  char* shared = dynamic_shared();
  char* windows = shared + Shape::kStages * Shape::kColumnTileBytes;
  int* begin = reinterpret_cast<int*>(windows + Shape::kWindowBytes);
  const Warp<Shape> warp = this_warp<Shape>(geometry, block, windows);
  const int repeats = query_heads_per_kv_head(geometry.problem);
  const StagedColumns<Shape> staged{params, warp, begin,
                                    reinterpret_cast<Element*>(begin + Shape::kStages * Shape::kColumns)};

  auto query_tile = [&](int stage) { return Tile{shared + stage * Shape::kColumnTileBytes}; };
  auto load = [&](const Box& box, int repeat, int stage) {
    const int head = block.head * repeats + repeat;
    load_tokens<Shape, Shape::kColumns>(BoxTokens(geometry, block.columns, block, box), geometry.tiling.columns,
                                        {params.queries}, head, {query_tile(stage)}, first_feature);
    staged.load(box, head, stage);
    cp_async_commit();
  };

  warp.windows.template store<Side::kKeys>(geometry, block, 0);
  Walk walk = make_walk(geometry.tiling, block.axis);
  const int boxes = walk.total(), total = boxes * repeats;
  int repeat = 0;  // of the box that `walk` is at
  Box box = column_box(geometry.tiling, block, walk);
  if (total > 0) load(box, 0, 0);

  float out[Shape::kRowTiles][Shape::kFeatures / 8][4] = {};
  for (int step = 0; step < total; ++step) {
    cp_async_wait<0>();
    block_sync();  // this box has landed, and nobody reads the one before
    const int stage = step % Shape::kStages;
    if ((step + 1) % boxes == 0) {
      walk = make_walk(geometry.tiling, block.axis), ++repeat;
    } else {
      walk.step();
    }
    const Box next = column_box(geometry.tiling, block, walk);
    if (step + 1 < total) load(next, repeat, (step + 1) % Shape::kStages);

    ColumnBits<Shape> bits[Shape::kThreadRows];
    if (find_columns(warp, box.start, bits)) {
      typename Shape::Scores weights;
      staged.gather(stage, bits, weights);
      warp.add_weighted(out, weights, query_tile(stage));
    }
    box = next;
  }
  const Suspects suspects =
      store_rows(warp, {params.out, params.keys.heads, params.keys.features, first_feature}, out, 1.f);
  if (block.complete && suspects.some())
    for_each_suspect(geometry, block, params.keys.heads, suspects, [&](int64_t row) {
      sum_again<Element, Side::kKeys>(params, row, {first_feature, first_feature + Shape::kFeatures});
    });
}

}  // namespace jax_na::cuda
