// SPDX-License-Identifier: Apache-2.0
// What a kernel source sees on the host: CUDA's words, and the wrappers of cuda/ptx/sm80.cuh as calls of the executor.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "simt/executor/executor.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
// Always inlined, so that the source lines of a finding reach from here to the kernel.
#define __noinline__
#define __forceinline__ inline __attribute__((always_inline))

#define threadIdx (::simt::thread_index)
#define blockIdx (::simt::block_index)
#define blockDim (::simt::block_dimension)
#define gridDim (::simt::grid_dimension)

namespace jax_na::cuda {

__forceinline__ char* dynamic_shared() { return simt::dynamic_shared(); }
__forceinline__ uint32_t shared_address(const void* pointer) { return simt::shared_address(pointer); }

__forceinline__ void cp_async16(uint32_t to, const void* from, bool valid) { simt::cp_async16(to, from, valid); }
__forceinline__ void cp_async_commit() { simt::cp_async_commit(); }
template <int kPending>
__forceinline__ void cp_async_wait() {
  simt::cp_async_wait(kPending);
}

__forceinline__ void block_sync() { simt::block_sync(); }
__forceinline__ void warp_sync() { simt::warp_sync(); }

// A Value is an int, a uint32_t or a float.
template <class Value>
__forceinline__ Value shuffle(Value value, int lane) {
  static_assert(sizeof(Value) == sizeof(uint32_t));
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits = simt::shuffle(bits, lane);
  memcpy(&value, &bits, sizeof bits);
  return value;
}
template <class Value>
__forceinline__ Value shuffle_xor(Value value, int mask) {
  static_assert(sizeof(Value) == sizeof(uint32_t));
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits = simt::shuffle_xor(bits, mask);
  memcpy(&value, &bits, sizeof bits);
  return value;
}
__forceinline__ bool warp_all(bool value) { return simt::warp_all(value); }
__forceinline__ bool warp_any(bool value) { return simt::warp_any(value); }
__forceinline__ uint32_t warp_ballot(bool value) { return simt::warp_ballot(value); }
__forceinline__ int warp_min(int value) { return simt::warp_min(value); }
__forceinline__ int warp_max(int value) { return simt::warp_max(value); }

__forceinline__ void ldmatrix_x4(uint32_t (&pairs)[4], uint32_t row_address) {
  simt::ldmatrix(pairs, row_address, false);
}
__forceinline__ void ldmatrix_x4_trans(uint32_t (&pairs)[4], uint32_t row_address) {
  simt::ldmatrix(pairs, row_address, true);
}
__forceinline__ void mma_f16(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  simt::mma(simt::Type::kF16, sums, left, right0, right1);
}
__forceinline__ void mma_bf16(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  simt::mma(simt::Type::kBF16, sums, left, right0, right1);
}
__forceinline__ void mma_tf32(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  simt::mma(simt::Type::kTF32, sums, left, right0, right1);
}

__forceinline__ uint16_t float_to_f16(float value) { return simt::float_to_f16(value); }
__forceinline__ uint16_t float_to_bf16(float value) { return simt::float_to_bf16(value); }
__forceinline__ uint32_t pack_f16(float low, float high) {
  return float_to_f16(low) | uint32_t{float_to_f16(high)} << 16;
}
__forceinline__ uint32_t pack_bf16(float low, float high) {
  return float_to_bf16(low) | uint32_t{float_to_bf16(high)} << 16;
}
__forceinline__ float f16_to_float(uint16_t bits) { return simt::f16_to_float(bits); }
__forceinline__ float bf16_to_float(uint16_t bits) { return simt::bf16_to_float(bits); }
__forceinline__ uint32_t to_tf32(float value) { return simt::to_tf32(value); }
__forceinline__ float exp2_approx(float value) { return simt::exp2_approx(value); }

__forceinline__ uint32_t renewed(uint32_t value) { return value; }
template <class Value>
__forceinline__ const Value* renewed(const Value* pointer) {
  return pointer;
}
__forceinline__ float read_only(const float* pointer) { return *pointer; }

}  // namespace jax_na::cuda

__forceinline__ void __trap() { simt::trap(); }
