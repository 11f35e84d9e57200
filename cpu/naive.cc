// SPDX-License-Identifier: Apache-2.0
// The definition, one loop per index: what the paper calls the naive kernels, for every element type.
//
//   qk (PN)        weights[q, j] = <x[q], y[key(q, j)]>
//   av (NN)        x[q] = sum_j weights[q, j] y[key(q, j)]
//   inverse (IN)   y[k] = sum over the queries q that see k of weights[q, slot(q, k)] x[q]
#include <stdint.h>

#include "common/problem.h"
#include "common/walk.h"
#include "cpu/host/kernels.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/parallel.h"
#include "cpu/unfused_rows.h"

namespace jax_na {
namespace {

template <class T>
void qk(const UnfusedArgs& args, const Parallel& parallel) {
  const Problem& problem = args.problem;
  const int64_t dim = problem.value_dim;
  auto body = [&](int64_t row, char*) {
    auto* weights = static_cast<Accumulator<T>*>(args.weights) + row * problem.pitch;
    const T* query = static_cast<const T*>(args.x) + row * dim;
    for (int slot = 0; slot < problem.pitch; ++slot) weights[slot] = 0;
    for_each_key(problem, view_of_query(problem, row), [&](int slot, int64_t key_row) {
      const T* key = static_cast<const T*>(args.y) + key_row * dim;
      Accumulator<T> sum = 0;
      for (int64_t d = 0; d < dim; ++d) sum += to_accumulator(query[d]) * to_accumulator(key[d]);
      weights[slot] = sum;
    });
  };
  parallel_for(parallel, problem.batch * query_tokens(problem) * problem.heads, body);
}

template <class T>
void av(const UnfusedArgs& args, const Parallel& parallel) {
  const Problem& problem = args.problem;
  auto body = [&](int64_t row, char*) { av_row<T>(args, row); };
  parallel_for(parallel, problem.batch * query_tokens(problem) * problem.heads, body);
}

template <class T>
void inverse(const UnfusedArgs& args, const Parallel& parallel) {
  const Problem& problem = args.problem;
  auto body = [&](int64_t row, char*) { inverse_row<T, T>(args, row); };
  parallel_for(parallel, problem.batch * key_tokens(problem) * problem.kv_heads, body);
}

void naive_qk(const UnfusedArgs& args, const Parallel& parallel) {
  with_dtype(args.dtype, [&](auto element) { qk<decltype(element)>(args, parallel); });
}
void naive_av(const UnfusedArgs& args, const Parallel& parallel) {
  with_dtype(args.dtype, [&](auto element) { av<decltype(element)>(args, parallel); });
}
void naive_inverse(const UnfusedArgs& args, const Parallel& parallel) {
  with_dtype(args.dtype, [&](auto element) { inverse<decltype(element)>(args, parallel); });
}

constexpr double kCost = 10;

constexpr CpuVariant naive_variant(Target target, Pass pass, void (*run)(const void*, const Parallel&)) {
  return {{target, pass, "naive", Form::kNone, 0, kAllTypes, nullptr, nullptr, nullptr}, run, no_scratch, kCost};
}

}  // namespace

extern const CpuVariant kNaiveQk, kNaiveAv, kNaiveInverse;
const CpuVariant kNaiveQk = naive_variant(Target::kNaiveQk, Pass::kQk, run_kernel<UnfusedArgs, naive_qk>);
const CpuVariant kNaiveAv = naive_variant(Target::kNaiveAv, Pass::kAv, run_kernel<UnfusedArgs, naive_av>);
const CpuVariant kNaiveInverse =
    naive_variant(Target::kNaiveInverse, Pass::kInverse, run_kernel<UnfusedArgs, naive_inverse>);

}  // namespace jax_na
