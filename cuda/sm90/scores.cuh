// SPDX-License-Identifier: Apache-2.0
// Scores of a warpgroup in the kernel for compute capability 9.0: mask, online softmax, weights. A thread has the rows
// g and g + 8 of its warp's 16 and of every 8 columns the two from 2 i on, with g = lane / 4 and i = lane % 4.
#pragma once

#include "cuda/block/scores.cuh"
#include "cuda/geometry/owned_columns.cuh"
#include "cuda/sm90/ring.cuh"

namespace jax_na::cuda {

// -inf for the scores of columns that a row does not see. `windows` and `inner` as in fused_scores.cuh, `start` of the
// box; `row` is the thread's first one.
template <class S, int kSums>
__device__ __forceinline__ void mask_scores(const Tiling& tiling, const OwnedColumns& owned, const int* windows,
                                            const Range (&inner)[kAxes], const int (&start)[kAxes], int row, int lane,
                                            float (&scores)[kSums]) {
  uint32_t bits[2] = {~0u, ~0u};
  bool needs_mask = false;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    const int log2 = tiling.columns[a];
    if (start[a] >= inner[a].start && start[a] + (1 << log2) <= inner[a].stop) continue;
    needs_mask = true;  // the same for the whole warp
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int* seen = windows + a * S::kRows + row + 8 * half;
      bits[half] &= owned_columns(owned.axis[a], lane, {seen[0], seen[kAxes * S::kRows]}, start[a], log2);
    }
  }
  if (!needs_mask) return;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < kSums / 2; ++i)
      if (!(bits[half] >> i & 1)) scores[4 * (i / 2) + 2 * half + i % 2] = -INFINITY;
}

// Running maximum and sum of the thread's two rows.
struct RunningSoftmax {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  // scores -> weights relative to the new maximum. Earlier sums shall be multiplied by `correction`. `factor` > 0.
  template <int kSums>
  __device__ __forceinline__ void update(float (&scores)[kSums], float (&correction)[2], float factor) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest[2] = {top[half], top[half]};
#pragma unroll
      for (int c = 0; c < kSums; c += 4)
#pragma unroll
        for (int e = 0; e < 2; ++e) highest[e] = fmaxf(highest[e], scores[c + 2 * half + e]);
      float best = fmaxf(highest[0], highest[1]);
      best = fmaxf(best, shuffle_xor(best, 1));
      best = fmaxf(best, shuffle_xor(best, 2));
      const float base = best == -INFINITY ? 0 : best * factor;  // nothing seen yet: all weights are 0
      correction[half] = exp2_approx(top[half] * factor - base);
      top[half] = best;
      float added[2] = {0, 0};
#pragma unroll
      for (int c = 0; c < kSums; c += 4)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = scores[c + 2 * half + e];
          x = exp2_approx(x * factor - base);
          added[e] += x;
        }
      sum[half] = sum[half] * correction[half] + (added[0] + added[1]);
    }
  }

  // Over the four threads of a row, once all columns are in.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += shuffle_xor(sum[half], 1);
      sum[half] += shuffle_xor(sum[half], 2);
    }
  }
};

template <int kSums>
__device__ __forceinline__ void rescale(float (&sums)[kSums], const float (&correction)[2]) {
  if (warp_all(correction[0] == 1 && correction[1] == 1)) return;  // after the first boxes the maximum hardly changes
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] *= correction[i / 2 % 2];
}

// Weights as the left operand of products with the values, 16 columns each.
template <class Type, int kSums>
__device__ __forceinline__ void pack_weights(uint32_t (&weights)[kSums / 8][4], const float (&scores)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums / 2; ++i) weights[i / 4][i % 4] = Type::pack(scores[2 * i], scores[2 * i + 1]);
}

}  // namespace jax_na::cuda
