// SPDX-License-Identifier: Apache-2.0
// Gradients of keys and values. Rows are keys, the columns that stream by are the queries that see them (the inverse
// windows), with their dO, LSE and delta, for every query head that shares the key head:
//
//     P^T = exp(S^T - LSE),   dV = P^T dO,   dK = scale dS^T Q   with   dS^T = P^T (V dO^T - delta)
//
// A key's sums are made by one block in a fixed order. Rows of more than 256 bytes are split over kParts blocks, which
// compute the same scores and keep a part of the features each: the sums of all would not fit into the registers.
#pragma once

#include "cuda/fused/backward_query.cuh"

namespace jax_na::cuda {

template <class S>
struct BackwardKeyShared {
  static constexpr int kColumnBytes = S::kColumns * static_cast<int>(sizeof(float));
  static constexpr int kKey = 0, kValue = kKey + S::kRowTileBytes, kQuery = kValue + S::kRowTileBytes,
                       kDout = kQuery + S::kStages * S::kColumnTileBytes,
                       kLse = kDout + S::kStages * S::kColumnTileBytes, kDelta = kLse + S::kStages * kColumnBytes,
                       kWindows = kDelta + S::kStages * kColumnBytes,
                       kBytes = kWindows + S::kWindowBytes + S::kInnerBytes;
};

// LSE, in the units of the exponents, and delta of a box of queries; 0 where there are none: their dS is 0.
template <class S>
__device__ __forceinline__ void load_statistics(const BackwardParams& p, const Block& b, const Box& box, int head,
                                                float* lse, float* delta) {
  const Geometry& g = p.geometry;
  for (int i = threadIdx.x; i < S::kColumns; i += S::kThreads) {
    const int64_t token = token_of(g, b.columns, b, box, g.tiling.columns, i);
    const int64_t row = (b.batch * b.columns.tokens() + token) * p.query.heads + head;
    lse[i] = token < 0 ? 0 : p.lse[row] * kLog2E;
    delta[i] = token < 0 ? 0 : p.delta[row];
  }
}

template <class S, int kParts>
__global__ void __launch_bounds__(S::kThreads, 8 / S::kWarps)
    fused_backward_key_kernel(const __grid_constant__ BackwardParams p) {
  using Shared = BackwardKeyShared<S>;
  using Tile = typename S::Tile;
  constexpr int kFeatureTiles = S::kFeatures / 8 / kParts, kPartChunks = S::kRowBytes / 16 / kParts;
  const Geometry& g = p.geometry;
  const int part = static_cast<int>(blockIdx.x % kParts);
  Block b;
  if (!find_block<Rows::kKeys>(g, blockIdx.x / kParts, p.key.heads, b)) return;

  char* shared = dynamic_shared();
  const Tile key{shared + Shared::kKey}, value{shared + Shared::kValue};
  int* windows = reinterpret_cast<int*>(shared + Shared::kWindows);
  const int lane = threadIdx.x % 32, first_row = static_cast<int>(threadIdx.x) / 32 * 16 * S::kRowTiles;
  const int repeats = query_heads_per_kv_head(g.problem);

  auto statistics = [&](int offset, int stage) {
    return reinterpret_cast<float*>(shared + offset + stage * Shared::kColumnBytes);
  };
  const ColumnTiles<S> tiles{shared + Shared::kQuery};
  auto load = [&](const Walk& walk, int repeat, int stage) {
    const int head = b.head * repeats + repeat;
    load_box(g, b, walk, {p.query, p.dout}, head, tiles, stage);
    load_statistics<S>(p, b, column_box(g.tiling, b, walk), head, statistics(Shared::kLse, stage),
                       statistics(Shared::kDelta, stage));
  };

  load_rows<S>(g, b, {p.key, p.value}, {key, value});
  store_windows<S, Rows::kKeys>(g, b, windows);
  block_sync();
  store_inner<S>(windows, first_row, lane);
  Walk walk = make_walk(g.tiling, b.axis);
  const int boxes = walk.total(), total = boxes * repeats;
  int repeat = 0;  // of the box that `walk` is at
  auto advance = [&](int step) {
    if ((step + 1) % boxes == 0) {
      walk = make_walk(g.tiling, b.axis), ++repeat;
    } else {
      walk.step();
    }
  };
  load(walk, 0, 0);

  float dkey[S::kRowTiles][kFeatureTiles][4] = {}, dvalue[S::kRowTiles][kFeatureTiles][4] = {};
  for (int step = 0; step < total; ++step) {
    cp_async_wait<0>();
    block_sync();  // this box has landed, and nobody reads the one before
    const int stage = step % S::kStages, query_head = b.head * repeats + repeat;
    const Box box = column_box(g.tiling, b, walk);
    advance(step);
    if (S::kStages > 1 && step + 1 < total) load(walk, repeat, (step + 1) % S::kStages);

    typename S::Scores weights, dscores;
    const Tile query = tiles.at(0, stage), dout = tiles.at(1, stage);
    const float *lse = statistics(Shared::kLse, stage), *delta = statistics(Shared::kDelta, stage);
    score_product<typename S::Math>(weights, key, first_row, query, lane);
    finish_scores<S, Rows::kKeys>(g, b, windows, box.start, query_head, first_row, lane, weights);
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
      for (int c = 0; c < S::kColumnTiles; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          weights[m][c][e] = exp2_approx(weights[m][c][e] * g.factor - lse[8 * c + 2 * (lane % 4) + e % 2]);
    weighted_product<typename S::Math>(dvalue, weights, dout, part * kPartChunks, lane);
    score_product<typename S::Math>(dscores, value, first_row, dout, lane);
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
      for (int c = 0; c < S::kColumnTiles; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          dscores[m][c][e] = weights[m][c][e] * (dscores[m][c][e] - delta[8 * c + 2 * (lane % 4) + e % 2]);
    weighted_product<typename S::Math>(dkey, dscores, query, part * kPartChunks, lane);

    if (S::kStages == 1 && step + 1 < total) {
      block_sync();
      load(walk, repeat, 0);
    }
  }
  cp_async_wait<0>();  // copies of a block without columns

  float scale[S::kRowTiles][2], one[S::kRowTiles][2];
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) {
    scale[m][0] = scale[m][1] = p.scale;
    one[m][0] = one[m][1] = 1;
  }
  const int first_feature = part * kFeatureTiles * 8;
  store_rows<S>(g, b, p.dkey, p.key.heads, p.key.features, first_feature, first_row, lane, dkey, scale);
  store_rows<S>(g, b, p.dvalue, p.key.heads, p.value.features, first_feature, first_row, lane, dvalue, one);
}

}  // namespace jax_na::cuda
