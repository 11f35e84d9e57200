// SPDX-License-Identifier: Apache-2.0
// Products of queries and keys, PN: weights[q, j] = <query[q], key[key(q, j)]>.
//
// Products of a tile of queries with a box of keys are scattered to rows of weights in shared memory, one row per
// query. These rows go to memory in pieces of 16 bytes, phase by phase; a piece that a phase ends in is carried over.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/scores.cuh"
#include "cuda/block/shape.cuh"
#include "cuda/block/tokens.cuh"
#include "cuda/block/warp.cuh"
#include "cuda/gemm/params.cuh"
#include "cuda/gemm/staged.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// The rows of weights of one warp.
template <class Shape>
struct StagedScores {
  const GemmParams& params;
  const Warp<Shape>& warp;
  float* base;

  __device__ __forceinline__ float* row(int number) const { return base + number * params.staging.slots; }
  __device__ __forceinline__ Vector* vectors(int number) const { return reinterpret_cast<Vector*>(row(number)); }
  __device__ __forceinline__ int64_t index_of(int row) const {
    return row_index(params.geometry, warp.block, params.queries.heads, row);
  }

  __device__ __forceinline__ void clear() const {
    const int count = params.staging.slots / 4;
    for (int i = warp.lane; i < 16 * Shape::kRowTiles * count; i += 32) vectors(warp.first_row)[i] = Vector{};
  }

  // Products of the box at `start`, of the phase that started at `phase`.
  __device__ __forceinline__ void scatter(const int (&start)[kAxes], const int (&phase)[kAxes],
                                          const ColumnBits<Shape> (&bits)[Shape::kThreadRows],
                                          const typename Shape::Scores& scores) const {
    int to[Shape::kThreadRows];
    staged_rows<float>(params, warp, start, phase, to);
    for_each_column(params, warp, [&](Own column, int slots) {
      for_each_own<Shape::kThreadRows>([&](Own row) {
        if (is_seen(bits[row], column)) base[to[row] + slots] = at(scores, row, column);
      });
    });
  }

  // Writes what is complete of the slots since the start of the phase: those before the next one, and all to the end of
  // the rows after the `last` one.
  __device__ __forceinline__ void flush(const int (&phase)[kAxes], const int (&next)[kAxes], bool last) const {
    const int room = params.staging.slots / 4;
    for (int r = warp.lane / kLanesPerRow; r < 16 * Shape::kRowTiles; r += kRowsAtOnce) {
      const int number = warp.first_row + r;
      int seen[kAxes];
      read_starts(warp.windows, number, seen);
      const int from = slots_before(params, params.staging.axis, phase, seen) / 4;
      const int until = last ? params.pitch / 4 : slots_before(params, params.staging.axis, next, seen) / 4;
      const int64_t index = index_of(number);
      auto* to = reinterpret_cast<Vector*>(static_cast<float*>(params.out) + index * params.pitch);
      Vector carried{};
      bool carries = false;
      for (int v = warp.lane % kLanesPerRow; v < max(room, until - from); v += kLanesPerRow) {
        // Beyond what is staged are slots that no key of this tile has: causal ones.
        const Vector values = v < room ? vectors(number)[v] : Vector{};
        if (from + v < until && index >= 0) to[from + v] = values;
        if (last || until == from) continue;
        if (v == until - from) carried = values, carries = true;
        if (v < room) vectors(number)[v] = Vector{};
      }
      warp_sync();
      if (carries) vectors(number)[0] = carried;
    }
    warp_sync();
  }

  // Where windows reach beyond the keys present there are no numbers.
  __device__ __forceinline__ void write_nan() const {
    for (int row = threadIdx.x / kLanesPerRow; row < Shape::kRows; row += Shape::kThreads / kLanesPerRow) {
      const int64_t index = index_of(row);
      auto* to = static_cast<float*>(params.out) + index * params.pitch;
      for (int slot = warp.lane % kLanesPerRow; index >= 0 && slot < params.pitch; slot += kLanesPerRow) to[slot] = NAN;
    }
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, min_blocks<Shape, Pass::kQk>())
    gemm_qk_kernel(const __grid_constant__ GemmParams params) {
  const Geometry& geometry = params.geometry;
  Block block;
  if (!find_block<Side::kQueries>(geometry, blockIdx.x, params.queries.heads, block)) return;

  const int slices = slices_of<Shape>(params);
  char* shared = dynamic_shared();
  char* queries = shared + Shape::kStages * Shape::kColumnTileBytes;
  char* windows = queries + (slices > 1 ? Shape::kStages : 1) * Shape::kRowTileBytes;
  const Warp<Shape> warp = this_warp<Shape>(geometry, block, windows);
  const int kv_head = block.head / query_heads_per_kv_head(geometry.problem);
  const StagedScores<Shape> staged{params, warp, reinterpret_cast<float*>(windows + Shape::kWindowBytes)};
  if (!block.complete) {
    staged.write_nan();
    return;
  }

  using Tile = typename Shape::Tile;
  auto query_tile = [&](int stage) { return Tile{queries + (slices > 1 ? stage : 0) * Shape::kRowTileBytes}; };
  auto key_tile = [&](int stage) { return Tile{shared + stage * Shape::kColumnTileBytes}; };
  auto load_queries = [&](int slice, int stage) {
    load_rows<Shape>(geometry, block, {params.queries}, {query_tile(stage)}, slice * Shape::kFeatures);
  };
  auto load = [&](const Walk& walk, int slice, int stage) {
    if (slices > 1) load_queries(slice, stage);
    load_tokens<Shape, Shape::kColumns>(
        BoxTokens(geometry, block.columns, block, column_box(geometry.tiling, block, walk)), geometry.tiling.columns,
        {params.keys}, kv_head, {key_tile(stage)}, slice * Shape::kFeatures);
    cp_async_commit();
  };

  warp.windows.template store<Side::kQueries>(geometry, block, 0);
  staged.clear();
  Walk walk = make_walk(geometry.tiling, block.axis);
  const int total = walk.total() * slices;
  if (slices == 1) load_queries(0, 0);
  load(walk, 0, 0);

  typename Shape::Scores scores;
  Box box = column_box(geometry.tiling, block, walk), phase = box;
  int slice = 0;
  for (int step = 0; step < total; ++step) {
    cp_async_wait<0>();
    block_sync();  // this box has landed, and nobody reads the one before
    const int stage = step % Shape::kStages, present = slice;
    const Walk here = walk;
    if (++slice == slices) slice = 0, walk.step();
    if (step + 1 < total) load(walk, slice, (step + 1) % Shape::kStages);

    ColumnBits<Shape> bits[Shape::kThreadRows];
    const bool some = find_columns(warp, box.start, bits);
    if (present == 0) clear(scores);
    if (some) warp.add_scores(scores, query_tile(stage), key_tile(stage));
    if (slice != 0) continue;  // more features of the same box

    if (some) staged.scatter(box.start, phase.start, bits, scores);
    box = column_box(geometry.tiling, block, walk);
    const bool last = step + 1 == total;
    if (last || starts_phase(params, here, walk)) {
      warp_sync();
      staged.flush(phase.start, box.start, last);
      phase = box;
    }
  }
}

}  // namespace jax_na::cuda
