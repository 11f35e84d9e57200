// SPDX-License-Identifier: Apache-2.0
// One row of a result of the unfused sums, by definition, for every element type. A weight of exactly zero is that of a
// key that is not seen: it adds nothing, whatever it would be multiplied with.
#pragma once

#include <stdint.h>

#include "common/call/args.h"
#include "common/isa.h"
#include "common/problem.h"
#include "common/walk.h"
#include "cpu/simd/numeric.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// x[q] = sum_j weights[q, j] y[key(q, j)]
template <class T>
void av_row(const UnfusedArgs& args, int64_t row) {
  const Problem& problem = args.problem;
  const int64_t dim = problem.value_dim;
  const auto* weights = static_cast<const Accumulator<T>*>(args.weights) + row * problem.pitch;
  const View query = view_of_query(problem, row);
  for (int64_t d = 0; d < dim; ++d) {
    Accumulator<T> sum = 0;
    for_each_key(problem, query, [&](int slot, int64_t key) {
      if (weights[slot] != 0) sum += weights[slot] * to_accumulator(static_cast<const T*>(args.y)[key * dim + d]);
    });
    assign(static_cast<T*>(args.x)[row * dim + d], sum);
  }
}

// y[k] = sum over the queries q that see k of weights[q, slot(q, k)] x[q]
template <class T, class Result>
void inverse_row(const UnfusedArgs& args, int64_t row) {
  const Problem& problem = args.problem;
  const int64_t dim = problem.value_dim;
  const View key = view_of_key(problem, row);
  for (int64_t d = 0; d < dim; ++d) {
    Accumulator<T> sum = 0;
    for_each_query(problem, key, [&](int slot, int64_t query) {
      const auto weight = static_cast<const Accumulator<T>*>(args.weights)[query * problem.pitch + slot];
      if (weight != 0) sum += weight * to_accumulator(static_cast<const T*>(args.x)[query * dim + d]);
    });
    assign(static_cast<Result*>(args.y)[row * dim + d], sum);
  }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
