// SPDX-License-Identifier: Apache-2.0
// Small kernels with faults to plant in them: instructions of compute capability 9.0. Comments as in sm80.cuh.
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
  kMisalignedBox,
  kMisalignedRows,
  kMissingRegisters,
  kMapTooLong,
};

// out [rows, 64] = left [rows, 64 * steps] right [64 * steps, 64], bfloat16, rows in blocks of 128. The first warpgroup
// copies tiles through two buffers, the two others multiply 64 rows each.
struct TensorProductParams {
  TensorMap left, right;
  uint16_t* out;
  int rows, steps, fault;
};

struct Stages {  // shared memory: two stages of the operands, the results, then barriers
  static constexpr uint32_t kX = 0, kY = 4 * kTileBytes, kOut = 6 * kTileBytes, kBarriers = 8 * kTileBytes;
  static constexpr int kBytes = kBarriers + 32;
  uint32_t shared;
  __device__ uint32_t left(int step) const { return shared + kX + step % 2 * 2 * kTileBytes; }
  __device__ uint32_t right(int step) const { return shared + kY + step % 2 * kTileBytes; }
  __device__ uint32_t full(int step) const { return shared + kBarriers + step % 2 * 8; }
  __device__ uint32_t empty(int step) const { return shared + kBarriers + 16 + step % 2 * 8; }
};

__device__ __forceinline__ void copy_tiles(const TensorProductParams& params, const Stages& stages) {
  const int row0 = blockIdx.x * 2 * kTile;
  for (int step = 0; step < params.steps; ++step) {
    // at kMissingRelease, kMissingInitBarrier
    mbarrier_wait(params.fault == kBufferNotEmpty ? stages.full(step) : stages.empty(step), step / 2 % 2 ^ 1);
    int bytes = 3 * kTileBytes;
    if (params.fault == kShortTransaction) bytes -= 128;
    if (params.fault == kLongTransaction) bytes += 128;
    // at kMissingInitBarrier
    mbarrier_expect_tx(stages.full(step), bytes);
    const uint32_t shift = params.fault == kMisalignedBox ? 128 : 0;
    const int term = 64 * step + (params.fault == kMisalignedRows ? 4 : 0);
    // at kBufferNotEmpty, kWrongPhase, kMissingInitFence, kMapTooLong, kMisalignedRows
    tma_load(stages.left(step), &params.left, stages.full(step), {term, row0, 0, 0, 0});
    // at kMisalignedBox, kWrongStride, kWrongSwizzle
    tma_load(stages.right(step) + shift, &params.right, stages.full(step), {0, 64 * step, 0, 0, 0});
  }
}

// Where a thread's sums 2 i and 2 i + 1 lie in a tile of 64 x 64 values of 2 bytes.
__device__ __forceinline__ uint32_t* pair_of(char* tile, int i) {
  const int thread = threadIdx.x % 128, lane = thread % 32;
  const int row = thread / 32 * 16 + lane / 4 + i % 2 * 8, chunk = i / 2;
  return reinterpret_cast<uint32_t*>(tile + row * 128 + (chunk ^ (row & 7)) * 16 + lane % 4 * 4);
}

__device__ __forceinline__ void store_tile(const TensorProductParams& params, int half, const float (&sums)[32]) {
  char* tile = dynamic_shared() + Stages::kOut + half * kTileBytes;
  for (int i = 0; i < 16; ++i) {
    // at kMissingNamedBarrier
    *pair_of(tile, i) = pack_bf16(sums[2 * i], sums[2 * i + 1]);
  }
  if (params.fault != kMissingNamedBarrier) named_barrier_sync(1 + half, 128);
  for (int i = threadIdx.x % 128; i < kTile * 8; i += 128) {
    const int row = (static_cast<int>(blockIdx.x) * 2 + half) * kTile + i / 8, chunk = (i % 8) ^ (i / 8 & 7);
    // at kMissingNamedBarrier
    if (row < params.rows) memcpy(params.out + row * kTile + i % 8 * 8, tile + i / 8 * 128 + chunk * 16, 16);
  }
}

__device__ __forceinline__ void multiply_tiles(const TensorProductParams& params, const Stages& stages, int half,
                                               float (&sums)[32]) {
  const int stride = params.fault == kWrongStride ? 4096 : 1024;
  const Swizzle swizzle = params.fault == kWrongSwizzle ? Swizzle::k64 : Swizzle::k128;
  const bool elected = threadIdx.x % 128 == 0;
  for (int step = 0; step < params.steps; ++step) {
    // at kShortTransaction, kLongTransaction, kWrongPhase, kBufferNotEmpty
    mbarrier_wait(stages.full(step), step / 2 % 2 ^ (params.fault == kWrongPhase ? 1 : 0));
    if (params.fault != kMissingWgmmaFence) wgmma_fence();
    for (int k = 0; k < 4; ++k) {
      const uint64_t a = matrix_descriptor(stages.left(step) + half * kTileBytes + 32 * k, 16, 1024, Swizzle::k128);
      const uint64_t b = matrix_descriptor(stages.right(step) + 2048 * k, 16, stride, swizzle);
      // at kBufferNotEmpty, kWrongPhase, kWrongStride, kWrongSwizzle, kMissingWgmmaFence, kMissingWgmmaWait,
      // kLateWgmmaWait
      wgmma_ss<BFloat16, 64, true>(sums, a, b, step + k > 0);
    }
    wgmma_commit();
    if (params.fault == kLateWgmmaWait && elected) mbarrier_arrive(stages.empty(step));
    if (params.fault != kMissingWgmmaWait || step + 1 < params.steps) wgmma_wait<0>();
    keep(sums);
    if (params.fault != kMissingRelease && params.fault != kLateWgmmaWait && elected)
      mbarrier_arrive(stages.empty(step));
  }
}

__global__ void __launch_bounds__(384, 1) tensor_product(const __grid_constant__ TensorProductParams params) {
  const Stages stages{shared_address(dynamic_shared())};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      // at kMissingInitBarrier
      mbarrier_init(stages.full(stage), 1);
      mbarrier_init(stages.empty(stage), 2);
    }
    if (params.fault != kMissingInitFence) fence_mbarrier_init();
  }
  if (params.fault != kMissingInitBarrier) block_sync();
  if (threadIdx.x < 128) {
    if (params.fault != kMissingRegisters) set_max_registers_dec<40>();
    if (threadIdx.x == 0) copy_tiles(params, stages);
  } else {
    // at kMissingRegisters
    set_max_registers_inc<232>();
    const int half = static_cast<int>(threadIdx.x) / 128 - 1;
    float sums[32];
    multiply_tiles(params, stages, half, sums);
    store_tile(params, half, sums);
  }
}

// out = x x with bfloat16 tiles of 64 x 64: the operand is written to shared memory by ordinary stores.
struct SquareParams {
  const uint16_t* input;
  float* out;
  int fault;
};

__global__ void __launch_bounds__(128) square(const __grid_constant__ SquareParams params) {
  char* tile = dynamic_shared();
  for (int i = threadIdx.x; i < kTile * kTile; i += 128) {
    const int row = i / kTile, column = i % kTile, chunk = column / 8 ^ (row & 7);
    // at kMissingProxyFence
    reinterpret_cast<uint16_t*>(tile + row * 128 + chunk * 16)[column % 8] = params.input[i];
  }
  if (params.fault != kMissingProxyFence) fence_proxy_async();
  block_sync();
  float sums[32];
  wgmma_fence();
  for (int k = 0; k < 4; ++k) {
    const uint64_t left = matrix_descriptor(shared_address(tile) + 32 * k, 16, 1024, Swizzle::k128);
    const uint64_t right = matrix_descriptor(shared_address(tile) + 2048 * k, 16, 1024, Swizzle::k128);
    // at kMissingProxyFence
    wgmma_ss<BFloat16, 64, true>(sums, left, right, k > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  keep(sums);
  const int lane = threadIdx.x % 32, first = static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4;
  for (int i = 0; i < 32; ++i) params.out[(first + i / 2 % 2 * 8) * kTile + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

}  // namespace jax_na::cuda
