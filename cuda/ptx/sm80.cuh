// SPDX-License-Identifier: Apache-2.0
// Machine instructions of compute capability 8.0 and later, one wrapper each: inline PTX under nvcc, calls of the
// executor in simt/ when the sources are compiled for the host (JAX_NA_SIMT). sm90.cuh has those of 9.0.
//
// Kernels reach tensor cores, asynchronous copies, warps and shared memory through these alone. Shared addresses are
// the 32-bit numbers of shared_address. Wrappers that wait or synchronise keep the compiler from moving memory accesses
// across them.
#pragma once

#include <stdint.h>

#ifdef JAX_NA_SIMT
#include "simt/device/device.h"
#else

namespace jax_na::cuda {

// ---- shared memory ----

// The block's dynamic shared memory, aligned to 1024 bytes.
__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(1024) char dynamic_shared_memory[];
  return dynamic_shared_memory;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- asynchronous copies, thread by thread ----

// Starts copying 16 bytes to shared memory; zeros if not `valid`: then `from` is not read but must be an address in
// global memory. Both sides are aligned to 16 bytes.
__device__ __forceinline__ void cp_async16(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

// Closes the group of the copies that this thread started since the last call.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- the block and the warp ----

__device__ __forceinline__ void block_sync() { __syncthreads(); }
__device__ __forceinline__ void warp_sync() { __syncwarp(); }

// These need all 32 lanes, and order no memory accesses.
template <class Value>
__device__ __forceinline__ Value shuffle(Value value, int lane) {
  return __shfl_sync(~0u, value, lane);
}
template <class Value>
__device__ __forceinline__ Value shuffle_xor(Value value, int mask) {
  return __shfl_xor_sync(~0u, value, mask);
}
__device__ __forceinline__ bool warp_all(bool value) { return __all_sync(~0u, value); }
__device__ __forceinline__ bool warp_any(bool value) { return __any_sync(~0u, value); }
__device__ __forceinline__ uint32_t warp_ballot(bool value) { return __ballot_sync(~0u, value); }  // bit i of lane i
__device__ __forceinline__ int warp_min(int value) { return __reduce_min_sync(~0u, value); }
__device__ __forceinline__ int warp_max(int value) { return __reduce_max_sync(~0u, value); }

// ---- matrices ----

// Four 8x8 matrices of 2-byte values. Lane 8 m + r gives the address of row r of matrix m, 16 bytes, and each lane gets
// of every matrix the values (lane / 4, 2 (lane % 4)) and the next one: pairs[m].
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&pairs)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
               : "r"(row_address)
               : "memory");
}

// As ldmatrix_x4, of the transposed matrices: each lane gets the values (2 (lane % 4), lane / 4) and the one below.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&pairs)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
               : "r"(row_address)
               : "memory");
}

// sums += left right, 16x8 = (16 x k) (k x 8). With g = lane / 4 and i = lane % 4, a lane holds
//   sums: (g, 2i), (g, 2i + 1), (g + 8, 2i), (g + 8, 2i + 1)
//   2-byte types, k = 16:  left: pairs from (g, 2i), (g + 8, 2i), (g, 2i + 8), (g + 8, 2i + 8)
//                          right: pairs (2i, g), (2i + 1, g) and (2i + 8, g), (2i + 9, g)
//   TF32, k = 8:           left: (g, i), (g + 8, i), (g, i + 4), (g + 8, i + 4);  right: (i, g), (i + 4, g)
__device__ __forceinline__ void mma_f16(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}
__device__ __forceinline__ void mma_bf16(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0,
                                         uint32_t right1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}
__device__ __forceinline__ void mma_tf32(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0,
                                         uint32_t right1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

// ---- numbers ----

// Conversions round to nearest even, beyond the largest number to infinity; every NaN becomes 0x7fff.
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ uint16_t float_to_f16(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
__device__ __forceinline__ uint16_t float_to_bf16(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
__device__ __forceinline__ float f16_to_float(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
__device__ __forceinline__ float bf16_to_float(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }

// The bits of a value rounded to the 10 bits of mantissa that TF32 instructions read, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// 2^value to about 2 units in the last place; subnormal arguments and results become 0.
__device__ __forceinline__ float exp2_approx(float value) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
  return power;
}

// The same number, of which the compiler does not know that: what depends on it is computed again.
__device__ __forceinline__ uint32_t renewed(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

template <class Value>
__device__ __forceinline__ const Value* renewed(const Value* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}

// A load through the read-only cache, for what no thread of the grid writes.
__device__ __forceinline__ float read_only(const float* pointer) { return __ldg(pointer); }

}  // namespace jax_na::cuda

#endif
