// SPDX-License-Identifier: Apache-2.0
// Scores of a warpgroup in the kernel for compute capability 9.0: mask, online softmax, weights. A thread's sums are a
// flat list with two rows (fragment.cuh).
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/problem.h"
#include "common/window.h"
#include "cuda/block/fragment.cuh"
#include "cuda/block/warp.cuh"
#include "cuda/geometry/owned_columns.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// -inf for the scores of columns that a row does not see, in the box at `start`. `inner`: what all rows of the warp
// see.
template <class Shape, int kSums>
__device__ __forceinline__ void mask_scores(const Warp<Shape>& warp, const OwnedColumns& owned,
                                            const Range (&inner)[kAxes], const int (&start)[kAxes],
                                            float (&scores)[kSums]) {
  uint32_t bits[2] = {~0u, ~0u};
  bool needs_mask = false;
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) {
    const int log2 = warp.geometry.tiling.columns[axis];
    if (start[axis] >= inner[axis].start && start[axis] + (1 << log2) <= inner[axis].stop) continue;
    needs_mask = true;  // the same for the whole warp
    for_each_own<2>([&](Own row) {
      const Range seen = warp.windows.seen(axis, warp.row(row));
      bits[row] &= owned_columns(owned.axis[axis], warp.lane, seen, start[axis], log2);
    });
  }
  if (!needs_mask) return;
  for_each_own<2>([&](Own row) {
    for_each_own<kSums / 2>([&](Own column) {
      if (!(bits[row] >> column & 1)) at(scores, row, column) = -INFINITY;
    });
  });
}

// Running maximum and sum of the thread's two rows, as OnlineSoftmax of block/softmax.cuh has them. Maximum and sum of
// a box are made in two chains each, of the even and of the odd columns: one chain alone would wait for its own
// results.
struct RunningSoftmax {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  // scores -> weights relative to the new maximum. Earlier sums shall be multiplied by `correction`. `factor` > 0.
  template <int kSums>
  __device__ __forceinline__ void update(float (&scores)[kSums], float (&correction)[2], float factor) {
    for_each_own<2>([&](Own row) {
      float even = -INFINITY, odd = -INFINITY;
      for_each_pair(scores, row, [&](float first, float second, Own) {
        even = fmaxf(even, first);
        odd = fmaxf(odd, second);
      });
      const float best = fmaxf(top[row], row_max(fmaxf(even, odd)) * factor);
      const float base = best == -INFINITY ? 0 : best;  // nothing seen yet: all weights are 0
      correction[row] = exp2_approx(top[row] - base);
      top[row] = best;
      float added[2] = {0, 0};
      for_each_pair(scores, row, [&](float& first, float& second, Own) {
        first = exp2_approx(first * factor - base);
        added[0] += first;
        second = exp2_approx(second * factor - base);
        added[1] += second;
      });
      sum[row] = sum[row] * correction[row] + (added[0] + added[1]);
    });
  }

  // Over the four threads of a row, once all columns are in.
  __device__ __forceinline__ void finish() {
    for_each_own<2>([&](Own row) { sum[row] = row_sum(sum[row]); });
  }
};

template <int kSums>
__device__ __forceinline__ void rescale(float (&sums)[kSums], const float (&correction)[2]) {
  if (warp_all(correction[0] == 1 && correction[1] == 1)) return;  // after the first boxes the maximum hardly changes
  for_each(sums, [&](float& value, Own row, Own) { value *= correction[row]; });
}

// Weights as the left operand of products with the values, 16 columns each: neighbours side by side, in the order of
// the sums.
template <class Type, int kSums>
__device__ __forceinline__ void pack_weights(uint32_t (&weights)[kSums / 8][4], const float (&scores)[kSums]) {
#pragma unroll
  for (int pair = 0; pair < kSums / 2; ++pair)
    weights[pair / 4][pair % 4] = Type::pack(scores[2 * pair], scores[2 * pair + 1]);
}

}  // namespace jax_na::cuda
