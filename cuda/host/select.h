// SPDX-License-Identifier: Apache-2.0
// What the launchers of tensor-core kernels do first: check the problem, and turn element type and precision into the
// arithmetic of arithmetic.cuh. No CUDA header is needed here.
#pragma once

#include "cuda/host/kernels.h"

namespace jax_na::cuda {

struct TF32;
struct ExactF32;
template <class Type>
struct HalfPrecision;
struct F16Type;
struct BF16Type;

// What the host can check of the regions; their offsets are in device memory.
inline const char* check(const Problem& p) {
  for (int a = 0; a < kAxes; ++a)
    if (p.nq[a] > p.axis[a].length || p.nk[a] > p.axis[a].length) return "more tokens than the grid has";
  if (query_tokens(p) > INT32_MAX || key_tokens(p) > INT32_MAX) return "the grid has more than 2^31 - 1 tokens";
  return nullptr;
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
      return "these kernels take float32, bfloat16 and float16";
  }
}

}  // namespace jax_na::cuda
