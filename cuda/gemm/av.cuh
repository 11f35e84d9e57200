// SPDX-License-Identifier: Apache-2.0
// Weighted sums of values, NN: x[q] = sum_j weights[q, j] y[key(q, j)].
//
// Rows of weights are copied to shared memory in pieces of 16 bytes, phase by phase; the weights of a tile of queries
// and a box of keys are gathered from there, 0 where a query does not see a key.
#pragma once

#include "cuda/gemm/staged.cuh"

namespace jax_na::cuda {

// The rows of weights of one warp, one buffer per phase under way.
template <class S>
struct StagedWeights {
  using Element = typename S::Element;

  const GemmParams& p;
  const Block& b;
  const int* windows;
  Element* base;
  int first_row, lane;

  __device__ __forceinline__ Element* row(int i, int buffer) const {
    return base + (buffer * S::kRows + i) * p.staging.slots;
  }

  // Starts copying the slots of the phase that starts at `start`.
  __device__ __forceinline__ void load(const int (&start)[kAxes], int buffer) const {
    constexpr int kVector = per_vector<Element>();
    const int axis = p.staging.axis;
    int next[kAxes];
#pragma unroll
    for (int a = 0; a < kAxes; ++a) next[a] = start[a] + (a == axis ? 1 << p.geometry.tiling.columns[a] : 0);
    for (int r = lane / kLanesPerRow; r < 16 * S::kRowTiles; r += kRowsAtOnce) {
      const int i = first_row + r;
      const int64_t index = row_index(p, b, p.x.heads, i);
      if (index < 0) continue;
      int seen[kAxes];
      read_starts<S>(windows, i, seen);
      const int from = slots_before(p, axis, start, seen) / kVector;
      const int until = ceil_div(axis < 0 ? p.pitch : slots_before(p, axis, next, seen), kVector);
      const auto* weights = static_cast<const Element*>(p.weights) + index * p.pitch;
      for (int v = from + lane % kLanesPerRow; v < until; v += kLanesPerRow)
        cp_async16(shared_address(row(i, buffer) + (v - from) * kVector), weights + v * kVector, true);
    }
  }

  // Weights of the box at `start`, of the phase that started at `phase`.
  __device__ __forceinline__ void gather(const int (&start)[kAxes], const int (&phase)[kAxes], int buffer,
                                         const ColumnBits<S> (&bits)[S::kRowTiles][2],
                                         typename S::Scores& weights) const {
    int from[S::kRowTiles][2];
    staged_rows<S, Element>(p, windows, start, phase, first_row, lane, from);
    const Element* rows = row(0, buffer);
    for_each_column<S>(p, lane, [&](int c, int e, int column) {
#pragma unroll
      for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& weight = weights[m][c][2 * half + e];
          weight = 0;
          if (bits[m][half] >> (8 * c + e) & 1) weight = widen(rows[from[m][half] + column]);
        }
    });
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, min_blocks<S, Pass::kAv>())
    gemm_av_kernel(const __grid_constant__ GemmParams p) {
  using Tile = typename S::Tile;
  using Element = typename S::Element;
  const Geometry& g = p.geometry;
  const int slices = slices_of<S>(p), first_feature = static_cast<int>(blockIdx.x % slices) * S::kFeatures;
  Block b;
  if (!find_block<Rows::kQueries>(g, blockIdx.x / slices, p.x.heads, b)) return;

  // Shared memory: boxes of values, windows, weights.
  char* shared = dynamic_shared();
  int* windows = reinterpret_cast<int*>(shared + S::kStages * S::kColumnTileBytes);
  const int lane = threadIdx.x % 32, first_row = static_cast<int>(threadIdx.x) / 32 * 16 * S::kRowTiles;
  const int kv_head = b.head / query_heads_per_kv_head(g.problem);
  const StagedWeights<S> staged{
      p, b, windows, reinterpret_cast<Element*>(reinterpret_cast<char*>(windows) + S::kWindowBytes), first_row, lane};

  auto value_tile = [&](int stage) { return Tile{shared + stage * S::kColumnTileBytes}; };
  auto load = [&](const Box& box, int stage) {
    load_tokens<S, S::kColumns>(BoxTokens(g, b.columns, b, box), g.tiling.columns, {p.y}, kv_head, {value_tile(stage)},
                                first_feature);
  };

  store_windows<S, Rows::kQueries>(g, b, 0, windows);
  block_sync();
  Walk walk = make_walk(g.tiling, b.axis);
  const int total = walk.total();
  Box box = column_box(g.tiling, b, walk), phase = box;
  int buffer = 0;
  load(box, 0);
  if (total > 0) staged.load(phase.start, buffer);
  cp_async_commit();

  float out[S::kRowTiles][S::kFeatures / 8][4] = {};
  for (int step = 0; step < total; ++step) {
    cp_async_wait<0>();
    block_sync();  // this box has landed, and nobody reads the one before
    const int stage = step % S::kStages;
    const Walk here = walk;
    walk.step();
    const Box next = column_box(g.tiling, b, walk);
    const bool changes = step + 1 < total && starts_phase(p, here, walk);
    if (step + 1 < total) load(next, (step + 1) % S::kStages);
    if (changes) staged.load(next.start, buffer ^ 1);
    cp_async_commit();

    ColumnBits<S> bits[S::kRowTiles][2];
    if (find_columns<S>(g, windows, box.start, first_row, lane, bits)) {
      typename S::Scores weights;
      staged.gather(box.start, phase.start, buffer, bits, weights);
      weighted_product<typename S::Math>(out, weights, value_tile(stage), 0, lane);
    }
    box = next;
    if (changes) phase = next, buffer ^= 1;
  }
  cp_async_wait<0>();  // copies of a block without columns

  float valid[S::kRowTiles][2];  // a window reaches beyond the keys present: say so
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) valid[m][0] = valid[m][1] = b.complete ? 1.f : NAN;
  store_rows<S>(g, b, p.out, p.x.heads, p.x.features, first_feature, first_row, lane, out, valid);
}

}  // namespace jax_na::cuda
