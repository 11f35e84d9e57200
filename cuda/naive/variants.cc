// SPDX-License-Identifier: Apache-2.0
// The rows of the naive kernels: they take everything that a launch has threads for.
#include "cuda/host/variants.h"

#include "cuda/naive/config.h"

namespace jax_na::cuda {

struct Half;
struct BFloat16;

// One element type, in naive/naive.cu.
template <class T>
const char* run_naive(Pass, const UnfusedArgs&, Stream);

namespace {

template <Pass pass>
const char* run(const void* args, Stream stream) {
  const auto& unfused = *static_cast<const UnfusedArgs*>(args);
  switch (unfused.dtype) {
    case DType::kFloat64:
      return run_naive<double>(pass, unfused, stream);
    case DType::kFloat16:
      return run_naive<Half>(pass, unfused, stream);
    case DType::kBFloat16:
      return run_naive<BFloat16>(pass, unfused, stream);
    default:
      return run_naive<float>(pass, unfused, stream);
  }
}

template <Pass pass>
void obstacle(const Query& query, Text& text) {
  const Problem& p = query.problem;
  const int64_t tokens = keys_stay(pass) ? key_tokens(p) : query_tokens(p);
  const int heads = keys_stay(pass) ? p.kv_heads : p.heads;
  const double threads = product({p.batch, tokens, heads, pass == Pass::kQk ? p.pitch : p.value_dim});
  blocks_obstacle(threads / kNaiveThreads, text);
}

template <Pass pass>
constexpr CudaVariant naive(Target target) {
  return {{target, pass, "naive", Form::kNone, 0, kAllTypes, obstacle<pass>, nullptr, nullptr}, run<pass>, nullptr};
}

}  // namespace

extern const CudaVariant kNaiveQk, kNaiveAv, kNaiveInverse;
const CudaVariant kNaiveQk = naive<Pass::kQk>(Target::kNaiveQk);
const CudaVariant kNaiveAv = naive<Pass::kAv>(Target::kNaiveAv);
const CudaVariant kNaiveInverse = naive<Pass::kInverse>(Target::kNaiveInverse);

}  // namespace jax_na::cuda
