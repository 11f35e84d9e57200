// SPDX-License-Identifier: Apache-2.0
// The suspects of the GEMM kernels (block/suspects.cuh), computed by a warp from the weights in memory. These functions
// are called, not inlined: see fused/rows.cuh.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "common/walk.h"
#include "cuda/block/suspects.cuh"
#include "cuda/gemm/params.cuh"
#include "cuda/naive/sums.cuh"
#include "cuda/ptx/element.cuh"

namespace jax_na::cuda {

// Features [first, stop) of a row of the result; `stop` may lie beyond the last.
struct Features {
  int first, stop;
};

template <class Element, Side kRowSide>
__device__ __noinline__ void sum_again(const GemmParams& params, int64_t row, Features features) {
  constexpr bool kQueries = kRowSide == Side::kQueries;
  const Problem& problem = params.geometry.problem;
  Problem here = problem;  // with the offsets, which only the view needs
  place(here, params.geometry.offsets);
  const View view = kQueries ? view_of_query(here, row) : view_of_key(here, row);
  const auto* values = static_cast<const Channels<Element, 1>*>(kQueries ? params.keys.data : params.queries.data);
  const int dim = problem.value_dim, stop = min(features.stop, dim);
#pragma unroll 1
  for (int first = features.first; first < stop; first += 32) {
    const int d = first + static_cast<int>(threadIdx.x) % 32;
    float sum[1] = {};
    const auto add = [&](int64_t weight, int64_t place) {
      warp_sync();  // see WarpTeam
      if (d < stop) add_weighted(static_cast<const Element*>(params.weights)[weight], values[place * dim + d], sum);
    };
    if constexpr (kQueries) {
      for_each_key(problem, view, [&](int slot, int64_t key) { add(row * problem.pitch + slot, key); });
    } else {
      for_each_query(problem, view, [&](int slot, int64_t query) { add(query * problem.pitch + slot, query); });
    }
    if (d < stop) narrow(static_cast<Element*>(params.out)[row * dim + d], sum[0]);
  }
}

}  // namespace jax_na::cuda
