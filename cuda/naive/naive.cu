// SPDX-License-Identifier: Apache-2.0
// The launcher of the naive kernels. CMake compiles this source once for each element type, JAX_NA_MATH.
#include "common/call/operands.h"
#include "cuda/naive/naive.cuh"

namespace jax_na::cuda {

// Channels are loaded 16 bytes at a time where all rows start at a multiple of 16.
template <class T>
const char* run_naive(Pass pass, const UnfusedArgs& args, Stream stream) {
  constexpr int kWidth = 16 / static_cast<int>(sizeof(T));
  const Problem& p = args.problem;
  const uintptr_t places = reinterpret_cast<uintptr_t>(args.x) | reinterpret_cast<uintptr_t>(args.y);
  const bool wide = places % 16 == 0 && p.value_dim % kWidth == 0;
  const int64_t query_rows = p.batch * query_tokens(p) * p.heads, key_rows = p.batch * key_tokens(p) * p.kv_heads;
  const int vectors = wide ? p.value_dim / kWidth : p.value_dim;

  auto run = [&](void (*kernel)(UnfusedArgs), int64_t results) {
    return launch(kernel, (results + kNaiveThreads - 1) / kNaiveThreads, kNaiveThreads, 0, stream, args);
  };
  switch (pass) {
    case Pass::kQk:
      return run(wide ? naive_qk_kernel<T, kWidth> : naive_qk_kernel<T, 1>, query_rows * p.pitch);
    case Pass::kAv:
      return run(wide ? naive_av_kernel<T, kWidth> : naive_av_kernel<T, 1>, query_rows * vectors);
    default:
      return run(wide ? naive_inverse_kernel<T, kWidth> : naive_inverse_kernel<T, 1>, key_rows * vectors);
  }
}

template const char* run_naive<JAX_NA_MATH>(Pass, const UnfusedArgs&, Stream);

}  // namespace jax_na::cuda
