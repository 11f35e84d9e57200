// SPDX-License-Identifier: Apache-2.0
// Weighted sums over the inverse neighborhood, IN: y[k] = sum over the queries q that see k of weights[q, slot] x[q].
//
// Rows are keys, the columns that stream by are the queries that see them, for every query head that shares the key
// head. With each box of queries come their weights of this tile's keys, in pieces of 16 bytes; the transposed fragment
// is gathered from there. A key's sum is made by one block in a fixed order.
#pragma once

#include "cuda/gemm/staged.cuh"

namespace jax_na::cuda {

// The rows of weights of the queries of a box.
template <class S>
struct StagedColumns {
  using Element = typename S::Element;

  const GemmParams& p;
  const Block& b;
  const int* windows;
  int* begin;     // [kStages, kColumns]: where in `base` slots of the tile's first key would be
  Element* base;  // [kStages, kColumns, staging.slots]
  int first_row, lane;

  // Starts copying the weights of a box of queries, all of one head.
  __device__ __forceinline__ void load(const Box& box, int head, int stage) const {
    constexpr int kVector = per_vector<Element>();
    const Geometry& g = p.geometry;
    const BoxTokens tokens(g, b.columns, b, box);
    for (int i = threadIdx.x / kLanesPerRow; i < S::kColumns; i += S::kThreads / kLanesPerRow) {
      bool exists = true;
      const int token = tokens.index(g.tiling.columns, i, exists);
      int origin[kAxes], start[kAxes], from = 0, last = 0;
#pragma unroll
      for (int a = 0; a < kAxes; ++a) {
        const Extent& e = b.axis[a];
        const Range seen =
            window(g.problem.axis[a], e.length, min(box.start[a] + inside_box(g.tiling.columns, i, a), e.length - 1));
        origin[a] = e.origin, start[a] = seen.start;
        const int low = max(e.rows.start, seen.start), high = min(e.rows.stop, seen.stop);
        exists = exists && low < high;
        from += (low - seen.start) * p.slot_stride[a];
        last += (high - 1 - seen.start) * p.slot_stride[a];
      }
      const int first = from / kVector, row = (stage * S::kColumns + i) * p.staging.slots;
      if (lane % kLanesPerRow == 0) begin[stage * S::kColumns + i] = row + slot_of(p, origin, start) - first * kVector;
      if (!exists) continue;
      const auto* weights = static_cast<const Element*>(p.weights) +
                            ((b.batch * b.columns.tokens() + token) * p.x.heads + head) * p.pitch;
      for (int v = first + lane % kLanesPerRow; v <= last / kVector; v += kLanesPerRow)
        cp_async16(shared_address(base + row + (v - first) * kVector), weights + v * kVector, true);
    }
  }

  __device__ __forceinline__ void gather(int stage, const ColumnBits<S> (&bits)[S::kRowTiles][2],
                                         typename S::Scores& weights) const {
    const int* here = begin + stage * S::kColumns;
    int row[S::kRowTiles][2];
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        row[m][half] = slot_inside(p, p.geometry.tiling.rows, first_row + 16 * m + 8 * half + lane / 4);
#pragma unroll
    for (int c = 0; c < S::kColumnTiles; ++c)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = here[8 * c + 2 * (lane % 4) + e];
#pragma unroll
        for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float& weight = weights[m][c][2 * half + e];
            weight = 0;
            if (bits[m][half] >> (8 * c + e) & 1) weight = widen(base[column + row[m][half]]);
          }
      }
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, min_blocks<S, Pass::kInverse>())
    gemm_inverse_kernel(const __grid_constant__ GemmParams p) {
  using Tile = typename S::Tile;
  using Element = typename S::Element;
  const Geometry& g = p.geometry;
  const int slices = slices_of<S>(p), first_feature = static_cast<int>(blockIdx.x % slices) * S::kFeatures;
  Block b;
  if (!find_block<Rows::kKeys>(g, blockIdx.x / slices, p.y.heads, b)) return;

  // Shared memory: boxes of x, windows, begins of rows, weights.
  char* shared = dynamic_shared();
  int* windows = reinterpret_cast<int*>(shared + S::kStages * S::kColumnTileBytes);
  int* begin = windows + S::kWindowBytes / static_cast<int>(sizeof(int));
  const int lane = threadIdx.x % 32, first_row = static_cast<int>(threadIdx.x) / 32 * 16 * S::kRowTiles;
  const int repeats = query_heads_per_kv_head(g.problem);
  const StagedColumns<S> staged{
      p, b, windows, begin, reinterpret_cast<Element*>(begin + S::kStages * S::kColumns), first_row, lane};

  auto x_tile = [&](int stage) { return Tile{shared + stage * S::kColumnTileBytes}; };
  auto load = [&](const Box& box, int repeat, int stage) {
    const int head = b.head * repeats + repeat;
    load_tokens<S, S::kColumns>(BoxTokens(g, b.columns, b, box), g.tiling.columns, {p.x}, head, {x_tile(stage)},
                                first_feature);
    staged.load(box, head, stage);
    cp_async_commit();
  };

  store_windows<S, Rows::kKeys>(g, b, 0, windows);
  Walk walk = make_walk(g.tiling, b.axis);
  const int boxes = walk.total(), total = boxes * repeats;
  int repeat = 0;  // of the box that `walk` is at
  Box box = column_box(g.tiling, b, walk);
  if (total > 0) load(box, 0, 0);

  float out[S::kRowTiles][S::kFeatures / 8][4] = {};
  for (int step = 0; step < total; ++step) {
    cp_async_wait<0>();
    block_sync();  // this box has landed, and nobody reads the one before
    const int stage = step % S::kStages;
    if ((step + 1) % boxes == 0) {
      walk = make_walk(g.tiling, b.axis), ++repeat;
    } else {
      walk.step();
    }
    const Box next = column_box(g.tiling, b, walk);
    if (step + 1 < total) load(next, repeat, (step + 1) % S::kStages);

    ColumnBits<S> bits[S::kRowTiles][2];
    if (find_columns<S>(g, windows, box.start, first_row, lane, bits)) {
      typename S::Scores weights;
      staged.gather(stage, bits, weights);
      weighted_product<typename S::Math>(out, weights, x_tile(stage), 0, lane);
    }
    box = next;
  }

  float one[S::kRowTiles][2];
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) one[m][0] = one[m][1] = 1;
  store_rows<S>(g, b, p.out, p.y.heads, p.y.features, first_feature, first_row, lane, out, one);
}

}  // namespace jax_na::cuda
