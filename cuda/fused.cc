// SPDX-License-Identifier: Apache-2.0
// The fused kernels by element type and precision.
#include "kernels.h"

namespace jax_na::cuda {

struct TF32;
struct ExactF32;
template <class Type>
struct HalfPrecision;
struct F16Type;
struct BF16Type;

template <class Math>
const char* run_forward(const ForwardArgs&, Stream);
template <class Math>
const char* run_backward_query(const BackwardArgs&, Stream);
template <class Math>
const char* run_backward_key(const BackwardArgs&, Stream);

namespace {

// What the host can check of the regions; their offsets are in device memory.
const char* check(const Problem& p) {
  for (int a = 0; a < kAxes; ++a)
    if (p.nq[a] > p.axis[a].length || p.nk[a] > p.axis[a].length) return "more tokens than the grid has";
  if (query_tokens(p) > INT32_MAX || key_tokens(p) > INT32_MAX) return "the grid has more than 2^31 - 1 tokens";
  return nullptr;
}

template <class Math>
const char* run_backward(const BackwardArgs& a, Stream stream) {
  const char* error = run_backward_query<Math>(a, stream);
  return error != nullptr ? error : run_backward_key<Math>(a, stream);
}

// Calls run(tag) with the arithmetic for a type and precision.
template <class Math>
struct Tag {
  using type = Math;
};
template <class Run>
const char* with_arithmetic(DType dtype, Precision precision, const Run& run) {
  switch (dtype) {
    case DType::kFloat16:
      return run(Tag<HalfPrecision<F16Type>>{});
    case DType::kBFloat16:
      return run(Tag<HalfPrecision<BF16Type>>{});
    case DType::kFloat32:
      return precision == Precision::kExact ? run(Tag<ExactF32>{}) : run(Tag<TF32>{});
    default:
      return "the fused kernels take float32, bfloat16 and float16";
  }
}

}  // namespace

const char* fused_forward(const ForwardArgs& a, Stream stream) {
  if (const char* error = check(a.problem)) return error;
  return with_arithmetic(a.dtype, a.precision,
                         [&](auto math) { return run_forward<typename decltype(math)::type>(a, stream); });
}

const char* fused_backward(const BackwardArgs& a, Stream stream) {
  if (const char* error = check(a.problem)) return error;
  return with_arithmetic(a.dtype, a.precision,
                         [&](auto math) { return run_backward<typename decltype(math)::type>(a, stream); });
}

}  // namespace jax_na::cuda
