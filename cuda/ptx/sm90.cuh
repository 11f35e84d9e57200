// SPDX-License-Identifier: Apache-2.0
// Machine instructions of compute capability 9.0, one wrapper each: barriers in shared memory, tensor copies (TMA),
// named barriers, registers per warpgroup. wgmma.cuh has the matrix products of a warpgroup.
//
// Code for other architectures compiles, and traps when it runs.
#pragma once

#include <stdint.h>

#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// How the 16-byte chunks of rows of 128, 64 or 32 bytes are permuted in shared memory: the address bits from 4 on are
// xored with those from 7 on, 3, 2 or 1 of them. The numbers are those of matrix descriptors.
enum class Swizzle { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };

constexpr int kTensorRank = 5;  // of all tensor maps here

}  // namespace jax_na::cuda

#ifdef JAX_NA_SIMT
#include "simt/device/sm90.h"
#else

#include <cuda.h>

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define JAX_NA_SM90A(...) asm volatile(__VA_ARGS__)
#else
#define JAX_NA_SM90A(...) __trap()
#endif

namespace jax_na::cuda {

using TensorMap = CUtensorMap;  // a kernel takes it as a `const __grid_constant__` parameter

// ---- barriers in shared memory, 8 bytes each ----
// A phase is complete once `count` arrivals and all the bytes announced are in; then the next one begins, with the
// other parity. The first phase has parity 0.

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int count) {
  JAX_NA_SM90A("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Makes initialised barriers known to tensor copies; a block_sync then makes them known to the block.
__device__ __forceinline__ void fence_mbarrier_init() {
  JAX_NA_SM90A("fence.mbarrier_init.release.cluster;" :: : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  JAX_NA_SM90A("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Announces bytes of copies to come, and arrives.
__device__ __forceinline__ void mbarrier_expect_tx(uint32_t barrier, int bytes) {
  JAX_NA_SM90A("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits until the phase with this parity is complete: returns while the barrier is in a phase with the other one.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, int parity) {
  JAX_NA_SM90A(
      "{\n.reg .pred complete;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
      "@!complete bra again;\n}" ::"r"(barrier),
      "r"(parity) : "memory");
}

// ---- tensor copies from global to shared memory, each started by one thread ----
// Coordinates count elements, innermost axis first, and may lie outside of the tensor, where zeros are read. Along the
// innermost axis they are multiples of 16 bytes. All the bytes of the box, zeros included, count on the barrier.

__device__ __forceinline__ void tma_load(uint32_t to, const TensorMap* map, uint32_t barrier,
                                         const int (&coordinate)[kTensorRank]) {
  JAX_NA_SM90A(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, "
      "%7}], "
      "[%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(coordinate[0]), "r"(coordinate[1]), "r"(coordinate[2]), "r"(coordinate[3]),
      "r"(coordinate[4]) : "memory");
}

// Makes this thread's ordinary writes to shared memory visible to tensor copies and wgmma: between the write and the
// barrier before them.
__device__ __forceinline__ void fence_proxy_async() { JAX_NA_SM90A("fence.proxy.async.shared::cta;" :: : "memory"); }

// ---- parts of a block ----

// Barrier `id`, 1 to 15, of `threads` threads, whole warps; 0 is block_sync's.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Arrives without waiting.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// All warps of a warpgroup: from here on kRegisters per thread, a multiple of 8 from 24 to 256.
template <int kRegisters>
__device__ __forceinline__ void set_max_registers_dec() {
  JAX_NA_SM90A("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
// Waits until other warpgroups have given up enough.
template <int kRegisters>
__device__ __forceinline__ void set_max_registers_inc() {
  JAX_NA_SM90A("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace jax_na::cuda

#endif
