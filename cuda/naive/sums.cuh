// SPDX-License-Identifier: Apache-2.0
// The terms of weighted sums, as the naive kernels have them, and the GEMM kernels for suspects (block/suspects.cuh).
#pragma once

#include "cuda/ptx/element.cuh"

namespace jax_na::cuda {

// Channels that are loaded in one piece.
template <class Element, int kWidth>
struct alignas(kWidth * sizeof(Element)) Channels {
  Element at[kWidth];
};
template <class Element>
using Sum = decltype(widen(Element{}));

// sum += weight * values. A weight of exactly 0 adds nothing, whatever it would be multiplied with.
template <class Weight, class Element, int kWidth>
__device__ __forceinline__ void add_weighted(Weight weight, const Channels<Element, kWidth>& values,
                                             Sum<Element> (&sum)[kWidth]) {
  const Sum<Element> factor = widen(weight);
  for (int i = 0; i < kWidth; ++i) {
    const Sum<Element> value = widen(values.at[i]);
    sum[i] += factor * (factor != 0 ? value : 0);
  }
}

}  // namespace jax_na::cuda
