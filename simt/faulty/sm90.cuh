// SPDX-License-Identifier: Apache-2.0
// A small kernel with faults to plant in it: instructions of compute capability 9.0. Comments as in sm80.cuh.
#pragma once

#include "cuda/ptx/element.cuh"
#include "cuda/ptx/tensor_map.h"
#include "cuda/ptx/wgmma.cuh"
#include "simt/faulty/sm80.cuh"

namespace jax_na::cuda {

enum HopperFault {
  kWrongPhase = kFirstOfHopper,
  kShortTransaction,
  kLongTransaction,
  kBufferNotEmpty,
  kMissingRelease,
  kMissingInitFence,
  kMissingInitBarrier,
  kWrongStride,
  kWrongSwizzle,
  kMissingWgmmaFence,
  kMissingWgmmaWait,
  kLateWgmmaWait,
  kMissingProxyFence,
  kMissingNamedBarrier,
  kMissingStoreWait,
  kMisalignedBox,
  kStoreBeforeTensor,
  kMisalignedRows,
  kMissingRegisters,
  kMapTooLong,
};

// out [rows, 64] = x [rows, 64 * steps] y [64 * steps, 64], bfloat16, rows in blocks of 128. The first warpgroup copies
// tiles through two buffers, the two others multiply 64 rows each.
struct TensorProductParams {
  TensorMap x, y, out;
  int steps, fault;
};

struct Ring {  // shared memory: two stages of x and y, the results, then barriers
  static constexpr uint32_t kX = 0, kY = 4 * kTileBytes, kOut = 6 * kTileBytes, kBarriers = 8 * kTileBytes;
  static constexpr int kBytes = kBarriers + 32;
  uint32_t shared;
  __device__ uint32_t x(int step) const { return shared + kX + step % 2 * 2 * kTileBytes; }
  __device__ uint32_t y(int step) const { return shared + kY + step % 2 * kTileBytes; }
  __device__ uint32_t full(int step) const { return shared + kBarriers + step % 2 * 8; }
  __device__ uint32_t empty(int step) const { return shared + kBarriers + 16 + step % 2 * 8; }
};

__device__ __forceinline__ void copy_tiles(const TensorProductParams& p, const Ring& ring) {
  const int row0 = blockIdx.x * 2 * kTile;
  for (int step = 0; step < p.steps; ++step) {
    // at kMissingRelease, kMissingInitBarrier
    mbarrier_wait(p.fault == kBufferNotEmpty ? ring.full(step) : ring.empty(step), step / 2 % 2 ^ 1);
    int bytes = 3 * kTileBytes;
    if (p.fault == kShortTransaction) bytes -= 128;
    if (p.fault == kLongTransaction) bytes += 128;
    // at kMissingInitBarrier
    mbarrier_expect_tx(ring.full(step), bytes);
    const uint32_t shift = p.fault == kMisalignedBox ? 128 : 0;
    const int term = 64 * step + (p.fault == kMisalignedRows ? 4 : 0);
    // at kBufferNotEmpty, kWrongPhase, kMissingInitFence, kMapTooLong, kMisalignedRows
    tma_load(ring.x(step), &p.x, ring.full(step), {term, row0, 0, 0, 0});
    // at kMisalignedBox, kWrongStride, kWrongSwizzle
    tma_load(ring.y(step) + shift, &p.y, ring.full(step), {0, 64 * step, 0, 0, 0});
  }
}

__device__ __forceinline__ void store_tile(const TensorProductParams& p, int half, const float (&sums)[32]) {
  const int thread = threadIdx.x % 128, lane = thread % 32;
  char* tile = dynamic_shared() + Ring::kOut + half * kTileBytes;
  for (int i = 0; i < 16; ++i) {
    const int row = thread / 32 * 16 + lane / 4 + i % 2 * 8, chunk = i / 2;
    char* to = tile + row * 128 + (chunk ^ (row & 7)) * 16 + lane % 4 * 4;
    // at kMissingProxyFence, kMissingNamedBarrier
    *reinterpret_cast<uint32_t*>(to) = pack_bf16(sums[2 * i], sums[2 * i + 1]);
  }
  if (p.fault != kMissingProxyFence) fence_proxy_async();
  if (p.fault != kMissingNamedBarrier) named_barrier_sync(1 + half, 128);
  if (thread != 0) return;
  const int batch = p.fault == kStoreBeforeTensor ? -1 : 0;
  // at kMissingProxyFence, kMissingNamedBarrier, kMissingStoreWait, kStoreBeforeTensor
  tma_store(&p.out, shared_address(tile), {0, (static_cast<int>(blockIdx.x) * 2 + half) * kTile, batch, 0, 0});
  bulk_commit();
  if (p.fault != kMissingStoreWait) bulk_wait_read<0>();
}

__device__ __forceinline__ void multiply_tiles(const TensorProductParams& p, const Ring& ring, int half,
                                               float (&sums)[32]) {
  const int stride = p.fault == kWrongStride ? 4096 : 1024;
  const Swizzle swizzle = p.fault == kWrongSwizzle ? Swizzle::k64 : Swizzle::k128;
  const bool elected = threadIdx.x % 128 == 0;
  for (int step = 0; step < p.steps; ++step) {
    // at kShortTransaction, kLongTransaction, kWrongPhase, kBufferNotEmpty
    mbarrier_wait(ring.full(step), step / 2 % 2 ^ (p.fault == kWrongPhase ? 1 : 0));
    if (p.fault != kMissingWgmmaFence) wgmma_fence();
    for (int k = 0; k < 4; ++k) {
      const uint64_t a = matrix_descriptor(ring.x(step) + half * kTileBytes + 32 * k, 16, 1024, Swizzle::k128);
      const uint64_t b = matrix_descriptor(ring.y(step) + 2048 * k, 16, stride, swizzle);
      // at kBufferNotEmpty, kWrongPhase, kWrongStride, kWrongSwizzle, kMissingWgmmaFence, kMissingWgmmaWait,
      // kLateWgmmaWait
      wgmma_ss<BFloat16, 64, true>(sums, a, b, step + k > 0);
    }
    wgmma_commit();
    if (p.fault == kLateWgmmaWait && elected) mbarrier_arrive(ring.empty(step));
    if (p.fault != kMissingWgmmaWait || step + 1 < p.steps) wgmma_wait<0>();
    keep(sums);
    if (p.fault != kMissingRelease && p.fault != kLateWgmmaWait && elected) mbarrier_arrive(ring.empty(step));
  }
}

__global__ void __launch_bounds__(384, 1) tensor_product(const __grid_constant__ TensorProductParams p) {
  const Ring ring{shared_address(dynamic_shared())};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      // at kMissingInitBarrier
      mbarrier_init(ring.full(stage), 1);
      mbarrier_init(ring.empty(stage), 2);
    }
    if (p.fault != kMissingInitFence) fence_mbarrier_init();
  }
  if (p.fault != kMissingInitBarrier) block_sync();
  if (threadIdx.x < 128) {
    if (p.fault != kMissingRegisters) set_max_registers_dec<40>();
    if (threadIdx.x == 0) copy_tiles(p, ring);
  } else {
    // at kMissingRegisters
    set_max_registers_inc<232>();
    const int half = static_cast<int>(threadIdx.x) / 128 - 1;
    float sums[32];
    multiply_tiles(p, ring, half, sums);
    store_tile(p, half, sums);
  }
}

}  // namespace jax_na::cuda
