// SPDX-License-Identifier: Apache-2.0
// Gradient of the queries, and of the bias. Rows are queries, the columns that stream by are keys and values:
//
//     P = exp(S - LSE),   dS = P (dO V^T - delta),   dQ = scale dS K,   d_bias = sums of dS
//
// Nothing is added by two blocks to the same place: results do not depend on the order of execution.
#pragma once

#include "cuda/block/store.cuh"
#include "cuda/fused/keys.cuh"

namespace jax_na::cuda {

struct BackwardParams {
  Geometry geometry;
  Operand query, key, value, dout;
  AdditionalTokens additional;
  const float *lse, *delta;  // [batch, queries, heads]; delta = sum(dO O) - dLSE
  void *dquery, *dkey, *dvalue;
  float* dbias;  // [parts, heads, entries]
  int parts;
  float scale;
};

template <class S>
struct BackwardQueryShared {
  static constexpr int kQuery = 0, kDout = kQuery + S::kRowTileBytes, kKey = kDout + S::kRowTileBytes,
                       kValue = kKey + S::kStages * S::kColumnTileBytes,
                       kWindows = kValue + S::kStages * S::kColumnTileBytes,
                       kBytes = kWindows + S::kWindowBytes + S::kInnerBytes;
};

// A block of queries on its walk over keys: calls body(scores that have become dS, tile of keys, box) for each box.
template <class S, bool kBeside, class Body>
__device__ __forceinline__ void for_each_score_gradient(const BackwardParams& p, const Block& b, const Body& body) {
  using Shared = BackwardQueryShared<S>;
  using Tile = typename S::Tile;
  const Geometry& g = p.geometry;
  char* shared = dynamic_shared();
  const Tile query{shared + Shared::kQuery}, dout{shared + Shared::kDout};
  int* windows = reinterpret_cast<int*>(shared + Shared::kWindows);
  const int lane = threadIdx.x % 32, first_row = static_cast<int>(threadIdx.x) / 32 * 16 * S::kRowTiles;

  const ColumnTiles<S> tiles{shared + Shared::kKey};

  load_rows<S>(g, b, {p.query, p.dout}, {query, dout});
  store_windows<S, Rows::kQueries>(g, b, windows);
  block_sync();
  store_inner<S>(windows, first_row, lane);
  KeyStream<S, kBeside> keys(g, b, p.key, p.value, p.additional, tiles);
  const int total = keys.total();
  if (S::kStages > 1) keys.load(0);

  float lse[S::kRowTiles][2] = {}, delta[S::kRowTiles][2] = {};  // 0 for rows that do not exist: their dS is 0
  for_each_row<S>(g, b, p.query.heads, first_row, lane, [&](int m, int half, int64_t row) {
    lse[m][half] = p.lse[row] * kLog2E;
    delta[m][half] = p.delta[row];
  });

  for (int step = 0; step < total; ++step) {
    if (S::kStages == 1) {
      block_sync();  // nobody reads the box before
      keys.load(0);
    }
    cp_async_wait<0>();
    block_sync();  // this box has landed, and nobody reads the one before
    const int stage = step % S::kStages;
    const Box box = keys.next_box();
    if (S::kStages > 1 && step + 1 < total) keys.load((step + 1) % S::kStages);

    typename S::Scores scores, dweights;
    const Tile key = tiles.at(0, stage), value = tiles.at(1, stage);
    score_product<typename S::Math>(scores, query, first_row, key, lane);
    keys.finish(step, box, windows, first_row, lane, scores);
    score_product<typename S::Math>(dweights, dout, first_row, value, lane);
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
      for (int c = 0; c < S::kColumnTiles; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          scores[m][c][e] =
              exp2_approx(scores[m][c][e] * g.factor - lse[m][e / 2]) * (dweights[m][c][e] - delta[m][e / 2]);
    body(scores, key, box);
  }
  cp_async_wait<0>();  // copies of a block without columns
}

template <class S, bool kBeside>
__global__ void __launch_bounds__(S::kThreads, S::min_blocks(kBeside))
    fused_backward_query_kernel(const __grid_constant__ BackwardParams p) {
  const Geometry& g = p.geometry;
  Block b;
  if (!find_block<Rows::kQueries>(g, blockIdx.x, p.query.heads, b)) return;
  const int lane = threadIdx.x % 32, first_row = static_cast<int>(threadIdx.x) / 32 * 16 * S::kRowTiles;
  float dquery[S::kRowTiles][S::kFeatures / 8][4] = {};
  for_each_score_gradient<S, kBeside>(p, b, [&](const typename S::Scores& dscores, typename S::Tile key, const Box&) {
    weighted_product<typename S::Math>(dquery, dscores, key, 0, lane);
  });
  // Small windows end too soon to pay for the second search, wide rows leave no room for it.
  if constexpr (S::kWarps > 1 && S::kRowBytes <= 256) b = find_block_again<Rows::kQueries>(g, p.query.heads);
  float scale[S::kRowTiles][2];
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) scale[m][0] = scale[m][1] = b.complete ? p.scale : NAN;
  store_rows<S>(g, b, p.dquery, p.query.heads, p.query.features, 0, first_row, lane, dquery, scale);
}

// The bias, which additional tokens do not have: a block adds up dS over its part of the query tiles of a head, in its
// own table. Entry by entry: one thread adds all pairs of a tile that have the same (key - query).
template <class S>
struct BiasShared {
  static constexpr int kPitch = S::kColumns + 1;  // floats between rows of dS
  static constexpr int kGradient = BackwardQueryShared<S>::kBytes,
                       kBytes = kGradient + S::kRows * kPitch * static_cast<int>(sizeof(float));
};

// Adds the sums of one tile of dS along equal distances to the block's table.
template <class S>
__device__ __forceinline__ void add_distances(const Geometry& g, const Block& b, const Box& box, const float* dscores,
                                              float* table) {
  const Strides stride = bias_strides(g.problem);
  int count[kAxes], entries = 1;  // distances from -(rows - 1) to columns - 1
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    count[a] = (1 << g.tiling.rows[a]) + (1 << g.tiling.columns[a]) - 1;
    entries *= count[a];
  }
  for (int i = threadIdx.x; i < entries; i += S::kThreads) {
    const int distance[kAxes] = {i / (count[1] * count[2]), i / count[2] % count[1], i % count[2]};
    int entry = 0, first[kAxes], stop[kAxes], shift[kAxes];
    bool exists = true;
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      shift[a] = distance[a] - (1 << g.tiling.rows[a]) + 1;  // column - row inside the boxes
      first[a] = max(0, -shift[a]);
      stop[a] = min(1 << g.tiling.rows[a], (1 << g.tiling.columns[a]) - shift[a]);
      const int w = g.problem.axis[a].kernel_size, e = box.start[a] - b.axis[a].origin + shift[a] + w - 1;
      exists = exists && e >= 0 && e < 2 * w - 1;
      entry += e * stride.of[a];
    }
    if (!exists) continue;
    float sum = 0;
    for (int z = first[0]; z < stop[0]; ++z)
      for (int y = first[1]; y < stop[1]; ++y)
        for (int x = first[2]; x < stop[2]; ++x) {
          const int row = (((z << g.tiling.rows[1]) + y) << g.tiling.rows[2]) + x;
          const int column =
              (((z + shift[0]) << g.tiling.columns[1]) + y + shift[1] << g.tiling.columns[2]) + x + shift[2];
          sum += dscores[row * BiasShared<S>::kPitch + column];
        }
    table[entry] += sum;
  }
}

// blockIdx.x counts parts fastest, then heads.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::min_blocks(false))
    fused_backward_bias_kernel(const __grid_constant__ BackwardParams p) {
  const Geometry& g = p.geometry;
  const int part = static_cast<int>(blockIdx.x) % p.parts, head = static_cast<int>(blockIdx.x) / p.parts;
  const int entries = bias_entries(g.problem);
  float* table = p.dbias + (int64_t{part} * p.query.heads + head) * entries;
  float* shared = reinterpret_cast<float*>(dynamic_shared() + BiasShared<S>::kGradient);
  const int lane = threadIdx.x % 32, first_row = static_cast<int>(threadIdx.x) / 32 * 16 * S::kRowTiles;
  for (int i = threadIdx.x; i < entries; i += S::kThreads) table[i] = 0;

  const uint32_t tiles = g.tiles * static_cast<uint32_t>(g.problem.batch);
  for (uint32_t tile = part; tile < tiles; tile += p.parts) {
    block_sync();  // nobody reads the tile before
    Block b;
    const uint32_t index = (tile / g.tiles * p.query.heads + head) * g.tiles + tile % g.tiles;
    if (!find_block<Rows::kQueries>(g, index, p.query.heads, b)) continue;
    for_each_score_gradient<S, false>(p, b, [&](const typename S::Scores& dscores, typename S::Tile, const Box& box) {
#pragma unroll
      for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
        for (int c = 0; c < S::kColumnTiles; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            shared[(first_row + 16 * m + 8 * (e / 2) + lane / 4) * BiasShared<S>::kPitch + 8 * c + 2 * (lane % 4) +
                   e % 2] = dscores[m][c][e];
      block_sync();
      add_distances<S>(g, b, box, shared, table);
      block_sync();
    });
    if (!b.complete && threadIdx.x == 0) table[0] = NAN;
  }
}

}  // namespace jax_na::cuda
