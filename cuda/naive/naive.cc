// SPDX-License-Identifier: Apache-2.0
// The naive kernels by element type.
#include "cuda/host/kernels.h"

namespace jax_na::cuda {

struct Half;
struct BFloat16;

template <class T>
const char* run_naive(Unfused, const UnfusedArgs&, Stream);

namespace {

const char* run(Unfused operation, const UnfusedArgs& args, Stream stream) {
  switch (args.dtype) {
    case DType::kFloat64:
      return run_naive<double>(operation, args, stream);
    case DType::kFloat16:
      return run_naive<Half>(operation, args, stream);
    case DType::kBFloat16:
      return run_naive<BFloat16>(operation, args, stream);
    default:
      return run_naive<float>(operation, args, stream);
  }
}

}  // namespace

const char* naive_qk(const UnfusedArgs& args, Stream stream) { return run(Unfused::kQk, args, stream); }
const char* naive_av(const UnfusedArgs& args, Stream stream) { return run(Unfused::kAv, args, stream); }
const char* naive_inverse(const UnfusedArgs& args, Stream stream) { return run(Unfused::kInverse, args, stream); }

}  // namespace jax_na::cuda
