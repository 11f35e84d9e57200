// SPDX-License-Identifier: Apache-2.0
// The launcher of the naive kernels. CMake compiles this source once for each element type, JAX_NA_MATH.
#include "common/call/operands.h"
#include "cuda/naive/naive.cuh"

namespace jax_na::cuda {

// Channels are loaded 16 bytes at a time where all rows start at a multiple of 16.
template <class Element>
const char* run_naive(Pass pass, const UnfusedArgs& args, Stream stream) {
  constexpr int kWidth = 16 / static_cast<int>(sizeof(Element));
  const Problem& problem = args.problem;
  const uintptr_t places = reinterpret_cast<uintptr_t>(args.x) | reinterpret_cast<uintptr_t>(args.y);
  const bool wide = places % 16 == 0 && problem.value_dim % kWidth == 0;
  const int64_t query_rows = problem.batch * query_tokens(problem) * problem.heads,
                key_rows = problem.batch * key_tokens(problem) * problem.kv_heads;
  const int vectors = wide ? problem.value_dim / kWidth : problem.value_dim;

  auto run = [&](void (*kernel)(UnfusedArgs), int64_t results) {
    return launch(kernel, (results + kNaiveThreads - 1) / kNaiveThreads, kNaiveThreads, 0, stream, args);
  };
  switch (pass) {
    case Pass::kQk:
      return run(wide ? naive_qk_kernel<Element, kWidth> : naive_qk_kernel<Element, 1>, query_rows * problem.pitch);
    case Pass::kAv:
      return run(wide ? naive_av_kernel<Element, kWidth> : naive_av_kernel<Element, 1>, query_rows * vectors);
    default:
      return run(wide ? naive_inverse_kernel<Element, kWidth> : naive_inverse_kernel<Element, 1>, key_rows * vectors);
  }
}

template const char* run_naive<JAX_NA_MATH>(Pass, const UnfusedArgs&, Stream);

}  // namespace jax_na::cuda
