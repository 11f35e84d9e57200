// SPDX-License-Identifier: Apache-2.0
// Products of queries and keys, PN: weights[q, j] = <x[q], y[key(q, j)]>.
//
// Products of a tile of queries with a box of keys are scattered to rows of weights in shared memory, one row per
// query. These rows go to memory in pieces of 16 bytes, phase by phase; a piece that a phase ends in is carried over.
#pragma once

#include "cuda/gemm/staged.cuh"

namespace jax_na::cuda {

// The rows of weights of one warp.
template <class S>
struct StagedScores {
  const GemmParams& p;
  const Block& b;
  const int* windows;
  float* base;
  int first_row, lane;

  __device__ __forceinline__ float* row(int i) const { return base + i * p.staging.slots; }
  __device__ __forceinline__ Vector* vectors(int i) const { return reinterpret_cast<Vector*>(row(i)); }

  __device__ __forceinline__ void clear() const {
    const int count = p.staging.slots / 4;
    for (int i = lane; i < 16 * S::kRowTiles * count; i += 32) vectors(first_row)[i] = Vector{};
  }

  // Products of the box at `start`, of the phase that started at `phase`.
  __device__ __forceinline__ void scatter(const int (&start)[kAxes], const int (&phase)[kAxes],
                                          const ColumnBits<S> (&bits)[S::kRowTiles][2],
                                          const typename S::Scores& scores) const {
    int to[S::kRowTiles][2];
    staged_rows<S, float>(p, windows, start, phase, first_row, lane, to);
    for_each_column<S>(p, lane, [&](int c, int e, int column) {
#pragma unroll
      for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (bits[m][half] >> (8 * c + e) & 1) base[to[m][half] + column] = scores[m][c][2 * half + e];
    });
  }

  // Writes what is complete of the slots since the start of the phase: those before the next one, and all to the end of
  // the rows after the `last` one.
  __device__ __forceinline__ void flush(const int (&phase)[kAxes], const int (&next)[kAxes], bool last) const {
    const int room = p.staging.slots / 4;
    for (int r = lane / kLanesPerRow; r < 16 * S::kRowTiles; r += kRowsAtOnce) {
      const int i = first_row + r;
      int seen[kAxes];
      read_starts<S>(windows, i, seen);
      const int from = slots_before(p, p.staging.axis, phase, seen) / 4;
      const int until = last ? p.pitch / 4 : slots_before(p, p.staging.axis, next, seen) / 4;
      const int64_t index = row_index(p, b, p.x.heads, i);
      auto* to = reinterpret_cast<Vector*>(static_cast<float*>(p.out) + index * p.pitch);
      Vector carried{};
      bool carries = false;
      for (int v = lane % kLanesPerRow; v < max(room, until - from); v += kLanesPerRow) {
        // Beyond what is staged are slots that no key of this tile has: causal ones.
        const Vector values = v < room ? vectors(i)[v] : Vector{};
        if (from + v < until && index >= 0) to[from + v] = values;
        if (last || until == from) continue;
        if (v == until - from) carried = values, carries = true;
        if (v < room) vectors(i)[v] = Vector{};
      }
      warp_sync();
      if (carries) vectors(i)[0] = carried;
    }
    warp_sync();
  }

  // Where windows reach beyond the keys present there are no numbers.
  __device__ __forceinline__ void write_nan() const {
    for (int i = threadIdx.x / kLanesPerRow; i < S::kRows; i += S::kThreads / kLanesPerRow) {
      const int64_t index = row_index(p, b, p.x.heads, i);
      auto* to = static_cast<float*>(p.out) + index * p.pitch;
      for (int slot = lane % kLanesPerRow; index >= 0 && slot < p.pitch; slot += kLanesPerRow) to[slot] = NAN;
    }
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, min_blocks<S, Pass::kQk>())
    gemm_qk_kernel(const __grid_constant__ GemmParams p) {
  using Tile = typename S::Tile;
  const Geometry& g = p.geometry;
  Block b;
  if (!find_block<Rows::kQueries>(g, blockIdx.x, p.x.heads, b)) return;

  // Shared memory: boxes of keys, queries (of one slice for each buffer), windows, weights.
  const int slices = slices_of<S>(p);
  char* shared = dynamic_shared();
  char* queries = shared + S::kStages * S::kColumnTileBytes;
  int* windows = reinterpret_cast<int*>(queries + (slices > 1 ? S::kStages : 1) * S::kRowTileBytes);
  const int lane = threadIdx.x % 32, first_row = static_cast<int>(threadIdx.x) / 32 * 16 * S::kRowTiles;
  const int kv_head = b.head / query_heads_per_kv_head(g.problem);
  const StagedScores<S> staged{
      p, b, windows, reinterpret_cast<float*>(reinterpret_cast<char*>(windows) + S::kWindowBytes), first_row, lane};
  if (!b.complete) {
    staged.write_nan();
    return;
  }

  auto query_tile = [&](int stage) { return Tile{queries + (slices > 1 ? stage : 0) * S::kRowTileBytes}; };
  auto key_tile = [&](int stage) { return Tile{shared + stage * S::kColumnTileBytes}; };
  auto load_queries = [&](int slice, int stage) {
    load_tokens<S, S::kRows>(BoxTokens(g, b.rows, b, row_box(b)), g.tiling.rows, {p.x}, b.head, {query_tile(stage)},
                             slice * S::kFeatures);
  };
  auto load = [&](const Walk& walk, int slice, int stage) {
    if (slices > 1) load_queries(slice, stage);
    load_tokens<S, S::kColumns>(BoxTokens(g, b.columns, b, column_box(g.tiling, b, walk)), g.tiling.columns, {p.y},
                                kv_head, {key_tile(stage)}, slice * S::kFeatures);
    cp_async_commit();
  };

  store_windows<S, Rows::kQueries>(g, b, 0, windows);
  staged.clear();
  Walk walk = make_walk(g.tiling, b.axis);
  const int total = walk.total() * slices;
  if (slices == 1) load_queries(0, 0);
  load(walk, 0, 0);

  typename S::Scores scores;
  Box box = column_box(g.tiling, b, walk), phase = box;
  int slice = 0;
  for (int step = 0; step < total; ++step) {
    cp_async_wait<0>();
    block_sync();  // this box has landed, and nobody reads the one before
    const int stage = step % S::kStages, present = slice;
    const Walk here = walk;
    if (++slice == slices) slice = 0, walk.step();
    if (step + 1 < total) load(walk, slice, (step + 1) % S::kStages);

    ColumnBits<S> bits[S::kRowTiles][2];
    const bool some = find_columns<S>(g, windows, box.start, first_row, lane, bits);
    if (present == 0) clear(scores);
    if (some) add_score_product<typename S::Math>(scores, query_tile(stage), first_row, key_tile(stage), lane);
    if (slice != 0) continue;  // more features of the same box

    if (some) staged.scatter(box.start, phase.start, bits, scores);
    box = column_box(g.tiling, b, walk);
    const bool last = step + 1 == total;
    if (last || starts_phase(p, here, walk)) {
      warp_sync();
      staged.flush(phase.start, box.start, last);
      phase = box;
    }
  }
}

}  // namespace jax_na::cuda
