// SPDX-License-Identifier: Apache-2.0
// The softmax of rows whose scores come a part at a time.
#pragma once

#include <math.h>

#include "cuda/block/fragment.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Running maximum, in the units of the exponents, and sum of a thread's rows.
//
// Weights are relative to the maximum as it is when rounded, and so is everything that follows: of scores so large that
// rounding counts, weights and sum have the same error, which the division takes out.
template <int kRows>
struct OnlineSoftmax {
  float top[kRows], sum[kRows];

  __device__ __forceinline__ void start() {
    for_each_own<kRows>([&](Own row) {
      top[row] = -INFINITY;
      sum[row] = 0;
    });
  }

  // scores -> weights relative to their maximum; of rows whose scores are all there. `factor` > 0.
  template <class Scores>
  __device__ __forceinline__ void begin(Scores& scores, float factor) {
    for_each_own<kRows>([&](Own row) {
      top[row] = highest(scores, row, factor);
      sum[row] = weigh(scores, row, factor, base_of(top[row]));
    });
  }

  // scores -> weights relative to the new maximum; sums and `out` follow it.
  template <class Scores, class Out>
  __device__ __forceinline__ void update(Scores& scores, Out& out, float factor) {
    for_each_own<kRows>([&](Own row) {
      const float now = fmaxf(top[row], highest(scores, row, factor)), base = base_of(now);
      const float correction = exp2_approx(top[row] - base);
      top[row] = now;
      sum[row] = sum[row] * correction + weigh(scores, row, factor, base);
      if (warp_all(correction == 1)) return;  // after the first boxes the maximum hardly changes
      for_each_pair(out, row, [&](float& first, float& second, Own) {
        first *= correction;
        second *= correction;
      });
    });
  }

 private:
  // Where nothing has been seen yet, all weights are 0.
  static __device__ __forceinline__ float base_of(float top) { return top == -INFINITY ? 0 : top; }

  template <class Scores>
  static __device__ __forceinline__ float highest(Scores& scores, Own row, float factor) {
    float found = -INFINITY;
    for_each_pair(scores, row, [&](float first, float second, Own) { found = fmaxf(found, fmaxf(first, second)); });
    return row_max(found) * factor;
  }

  // The sum of the weights.
  template <class Scores>
  static __device__ __forceinline__ float weigh(Scores& scores, Own row, float factor, float base) {
    float sum = 0;
    for_each_pair(scores, row, [&](float& first, float& second, Own) {
      first = exp2_approx(first * factor - base);
      sum += first;
      second = exp2_approx(second * factor - base);
      sum += second;
    });
    return sum;
  }
};

}  // namespace jax_na::cuda
