// SPDX-License-Identifier: Apache-2.0
// Element types in memory. Sums are kept in float32 (in float64 for float64).
#pragma once

#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Unsigned integer of a number of bytes, to move values in one piece.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint64_t;
};

__device__ __forceinline__ uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
__device__ __forceinline__ float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(Half x) { return f16_to_float(x.bits); }
__device__ __forceinline__ float widen(BFloat16 x) { return bf16_to_float(x.bits); }

__device__ __forceinline__ void narrow(float& to, float x) { to = x; }
__device__ __forceinline__ void narrow(double& to, double x) { to = x; }
__device__ __forceinline__ void narrow(Half& to, float x) { to.bits = float_to_f16(x); }
__device__ __forceinline__ void narrow(BFloat16& to, float x) { to.bits = float_to_bf16(x); }

}  // namespace jax_na::cuda
