// SPDX-License-Identifier: Apache-2.0
// Fused attention, forward, for tensor cores with mma.sync (compute capability 8.0 and later):
//
//     S = scale Q K^T + bias,   m = max S,   P = exp(S - m),   O = P V / sum P,   LSE = m + log sum P
//
// with m, the sum and O corrected from box of keys to box of keys (online softmax).
#pragma once

#include "cuda/block/store.cuh"
#include "cuda/fused/keys.cuh"

namespace jax_na::cuda {

struct ForwardParams {
  Geometry geometry;
  Operand query, key, value;
  AdditionalTokens additional;
  void* out;   // [batch, queries, heads, value_dim]
  float* lse;  // [batch, queries, heads]
};

// Running maximum and sum of a thread's rows, two per row tile.
template <int kRowTiles>
struct OnlineSoftmax {
  float top[kRowTiles][2], sum[kRowTiles][2];

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) top[m][half] = -INFINITY, sum[m][half] = 0;
  }

  // scores -> weights relative to the new maximum; sums and `out` follow it. `factor` > 0.
  template <int kColumnTiles, int kFeatureTiles>
  __device__ __forceinline__ void update(float (&scores)[kRowTiles][kColumnTiles][4],
                                         float (&out)[kRowTiles][kFeatureTiles][4], float factor) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float highest = top[m][half];
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c)
          highest = fmaxf(highest, fmaxf(scores[m][c][2 * half], scores[m][c][2 * half + 1]));
        highest = fmaxf(highest, shuffle_xor(highest, 1));
        highest = fmaxf(highest, shuffle_xor(highest, 2));
        const float base = highest == -INFINITY ? 0 : highest * factor;  // nothing seen yet: all weights are 0
        const float correction = exp2_approx(top[m][half] * factor - base);
        float added = 0;
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = scores[m][c][2 * half + e];
            x = exp2_approx(x * factor - base);
            added += x;
          }
        top[m][half] = highest;
        sum[m][half] = sum[m][half] * correction + added;
        if (warp_all(correction == 1)) continue;  // after the first boxes the maximum hardly changes
#pragma unroll
        for (int f = 0; f < kFeatureTiles; ++f)
          out[m][f][2 * half] *= correction, out[m][f][2 * half + 1] *= correction;
      }
  }
};

template <class S>
struct ForwardShared {
  static constexpr int kQuery = 0, kKey = kQuery + S::kRowTileBytes, kValue = kKey + S::kStages * S::kColumnTileBytes,
                       kWindows = kValue + S::kStages * S::kColumnTileBytes,
                       kBytes = kWindows + S::kWindowBytes + S::kInnerBytes;
};

template <class S, bool kBeside>
__global__ void __launch_bounds__(S::kThreads, S::min_blocks(kBeside))
    fused_forward_kernel(const __grid_constant__ ForwardParams p) {
  using Shared = ForwardShared<S>;
  using Tile = typename S::Tile;
  const Geometry& g = p.geometry;
  Block b;
  if (!find_block<Rows::kQueries>(g, blockIdx.x, p.query.heads, b)) return;

  char* shared = dynamic_shared();
  const Tile query{shared + Shared::kQuery};
  int* windows = reinterpret_cast<int*>(shared + Shared::kWindows);
  const int lane = threadIdx.x % 32, first_row = static_cast<int>(threadIdx.x) / 32 * 16 * S::kRowTiles;

  const ColumnTiles<S> tiles{shared + Shared::kKey};

  load_rows<S>(g, b, {p.query}, {query});
  store_windows<S, Rows::kQueries>(g, b, windows);
  block_sync();
  store_inner<S>(windows, first_row, lane);
  KeyStream<S, kBeside> keys(g, b, p.key, p.value, p.additional, tiles);
  const int total = keys.total();
  if (S::kStages > 1) keys.load(0);

  OnlineSoftmax<S::kRowTiles> softmax;
  softmax.start();
  float out[S::kRowTiles][S::kFeatures / 8][4] = {};
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

    typename S::Scores scores;
    const Tile key = tiles.at(0, stage), value = tiles.at(1, stage);
    score_product<typename S::Math>(scores, query, first_row, key, lane);
    keys.finish(step, box, windows, first_row, lane, scores);
    softmax.update(scores, out, g.factor);
    weighted_product<typename S::Math>(out, scores, value, 0, lane);
  }
  cp_async_wait<0>();  // copies of a block without columns

  if constexpr (S::kRowTiles > 1) b = find_block_again<Rows::kQueries>(g, p.query.heads);  // costs short loops more
  float scale[S::kRowTiles][2];
  const float valid = b.complete ? 1.f : NAN;  // a window reaches beyond the keys present: say so
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& sum = softmax.sum[m][half];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      scale[m][half] = valid / sum;
    }
  store_rows<S>(g, b, p.out, p.query.heads, p.value.features, 0, first_row, lane, out, scale);
  if (lane % 4 != 0) return;
  for_each_row<S>(g, b, p.query.heads, first_row, lane, [&](int m, int half, int64_t row) {
    p.lse[row] = valid * kLn2 * (softmax.top[m][half] * g.factor + log2f(softmax.sum[m][half]));
  });
}

}  // namespace jax_na::cuda
