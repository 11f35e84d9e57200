// SPDX-License-Identifier: Apache-2.0
// Element types in memory. Sums are kept in float32 (in float64 for float64).
#pragma once

#include <stdint.h>
#include <string.h>

#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// WordOf<n>: the unsigned integer of n bytes, to move neighbouring values in one piece.
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

__device__ __forceinline__ uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
__device__ __forceinline__ float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(Half value) { return f16_to_float(value.bits); }
__device__ __forceinline__ float widen(BFloat16 value) { return bf16_to_float(value.bits); }

__device__ __forceinline__ void narrow(float& to, float value) { to = value; }
__device__ __forceinline__ void narrow(double& to, double value) { to = value; }
__device__ __forceinline__ void narrow(Half& to, float value) { to.bits = float_to_f16(value); }
__device__ __forceinline__ void narrow(BFloat16& to, float value) { to.bits = float_to_bf16(value); }

}  // namespace jax_na::cuda
