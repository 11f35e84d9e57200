// SPDX-License-Identifier: Apache-2.0
// The wrappers of cuda/ptx/sm90.cuh and cuda/ptx/wgmma.cuh on the host, as calls of the executor.
#pragma once

#include <type_traits>

#include "simt/device/device.h"
#include "simt/executor/executor_sm90.h"

namespace jax_na::cuda {

using TensorMap = simt::TensorMap;

__forceinline__ void mbarrier_init(uint32_t barrier, int count) { simt::mbarrier_init(barrier, count); }
__forceinline__ void fence_mbarrier_init() { simt::fence_mbarrier_init(); }
__forceinline__ void mbarrier_arrive(uint32_t barrier) { simt::mbarrier_arrive(barrier); }
__forceinline__ void mbarrier_expect_tx(uint32_t barrier, int bytes) { simt::mbarrier_expect_tx(barrier, bytes); }
__forceinline__ void mbarrier_wait(uint32_t barrier, int parity) { simt::mbarrier_wait(barrier, parity); }

__forceinline__ void tma_load(uint32_t to, const TensorMap* map, uint32_t barrier, const int (&coordinate)[5]) {
  simt::tensor_load(to, map, barrier, coordinate);
}
__forceinline__ void fence_proxy_async() { simt::fence_proxy_async(); }

__forceinline__ void named_barrier_sync(int id, int threads) { simt::named_barrier_sync(id, threads); }
__forceinline__ void named_barrier_arrive(int id, int threads) { simt::named_barrier_arrive(id, threads); }
template <int kRegisters>
__forceinline__ void set_max_registers_dec() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0);
  simt::set_max_registers(kRegisters, false);
}
template <int kRegisters>
__forceinline__ void set_max_registers_inc() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0);
  simt::set_max_registers(kRegisters, true);
}

__forceinline__ void wgmma_fence() { simt::wgmma_fence(); }
__forceinline__ void wgmma_commit() { simt::wgmma_commit(); }
template <int kPending>
__forceinline__ void wgmma_wait() {
  simt::wgmma_wait(kPending);
}
template <int kRegisters>
__forceinline__ void keep(float (&)[kRegisters]) {}  // the executor writes sums through their address

// Half or BFloat16 of cuda/ptx/element.cuh.
struct BFloat16;
template <class Element>
constexpr simt::Type kTypeOf = std::is_same_v<Element, BFloat16> ? simt::Type::kBF16 : simt::Type::kF16;

template <class Element, int N, bool kRightMajorN>
__forceinline__ void wgmma_ss(float (&sums)[N / 2], uint64_t left, uint64_t right, bool accumulate) {
  simt::wgmma({kTypeOf<Element>, N, kRightMajorN, accumulate}, sums, left, nullptr, right);
}
template <class Element, int N, bool kRightMajorN>
__forceinline__ void wgmma_rs(float (&sums)[N / 2], const uint32_t (&left)[4], uint64_t right, bool accumulate) {
  simt::wgmma({kTypeOf<Element>, N, kRightMajorN, accumulate}, sums, 0, left, right);
}

}  // namespace jax_na::cuda
