// SPDX-License-Identifier: Apache-2.0
// The GEMM kernels by element type and precision.
#include "cuda/host/select.h"

namespace jax_na::cuda {

template <class Math>
const char* run_gemm(Unfused, const GemmArgs&, Stream);

const char* gemm(Unfused operation, const GemmArgs& a, Stream stream) {
  if (const char* error = check(a.problem)) return error;
  return with_arithmetic(a.dtype, a.precision,
                         [&](auto math) { return run_gemm<typename decltype(math)::type>(operation, a, stream); });
}

}  // namespace jax_na::cuda
