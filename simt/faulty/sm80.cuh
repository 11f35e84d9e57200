// SPDX-License-Identifier: Apache-2.0
// Small kernels with faults to plant in them: instructions of compute capability 8.0. A comment `at NAME` marks the
// next line: the finding for the fault NAME must give it.
#pragma once

#include "cuda/ptx/element.cuh"

namespace jax_na::cuda {

enum Fault {
  kNone,
  kMissingBarrier,
  kMissingCopyWait,
  kUnguardedStore,
  kMisalignedCopy,
  kWindowTooLong,
  kWindowTooEarly,
  kMissingWarpSync,
  kDivergentShuffle,
  kLeavesEarly,
  kDivergentBarrier,
  kWritesInput,
  kUninitialised,
  kMisalignedStore,
  kOverlappingBlocks,
  kSharedOverrun,
  kFirstOfHopper
};

// out [rows, 64] = x [rows, 64 * steps] y [64 * steps, 64], rows in blocks of 64, through two buffers of shared memory.
struct ProductParams {
  const Half *input, *y;
  float* out;
  int rows, steps, fault;
};

constexpr int kTile = 64, kTileBytes = kTile * kTile * 2;

__device__ __forceinline__ uint32_t swizzled_row(uint32_t tile, int row, int chunk) {
  return tile + row * 128 + (chunk ^ (row & 7)) * 16;
}

__device__ __forceinline__ void load_tile(uint32_t tile, const Half* from, int pitch, int rows, int fault) {
  for (int i = threadIdx.x; i < kTile * 8; i += blockDim.x) {
    const int row = i / 8, chunk = i % 8;
    const Half* source = from + int64_t{row} * pitch + 8 * chunk;
    if (fault == kMisalignedCopy && row < rows) source += 1;
    // at kMissingCopyWait, kMissingBarrier, kMisalignedCopy
    cp_async16(swizzled_row(tile, row, chunk), row < rows ? source : from, row < rows);
  }
}

__global__ void __launch_bounds__(128) product(const __grid_constant__ ProductParams params) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row0 = blockIdx.x * kTile;
  const uint32_t shared = shared_address(dynamic_shared());
  auto load = [&](int step) {
    const uint32_t stage = shared + step % 2 * 2 * kTileBytes;
    load_tile(stage, params.input + int64_t{row0} * 64 * params.steps + 64 * step, 64 * params.steps,
              params.rows - row0, params.fault);
    load_tile(stage + kTileBytes, params.y + int64_t{64} * 64 * step, 64, kTile, kNone);
    cp_async_commit();
  };
  float sums[8][4] = {};
  load(0);
  for (int step = 0; step < params.steps; ++step) {
    if (params.fault != kMissingCopyWait) cp_async_wait<0>();
    if (params.fault != kMissingBarrier) block_sync();
    if (step + 1 < params.steps) load(step + 1);
    const uint32_t input = shared + step % 2 * 2 * kTileBytes, y = input + kTileBytes;
    for (int k = 0; k < 4; ++k) {
      uint32_t a[4];
      // at kMissingCopyWait, kMissingBarrier
      ldmatrix_x4(a, swizzled_row(input, 16 * warp + lane % 16, 2 * k + lane / 16));
      for (int n = 0; n < 4; ++n) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, swizzled_row(y, 16 * k + lane % 16, 2 * n + lane / 16));
        mma_f16(sums[2 * n], a, b[0], b[1]);
        mma_f16(sums[2 * n + 1], a, b[2], b[3]);
      }
    }
  }
  cp_async_wait<0>();
  for (int i = 0; i < 4; ++i) {
    const int row = row0 + 16 * warp + lane / 4 + i / 2 * 8;
    if (row >= params.rows && params.fault != kUnguardedStore) continue;
    // at kUnguardedStore
    for (int n = 0; n < 8; ++n) params.out[row * 64 + 8 * n + 2 * (lane % 4) + i % 2] = sums[n][i];
  }
}

// out[i] = sum of x over a window of 5 around i, at the ends the nearest one inside; one block per 64 values.
struct WindowParams {
  const float* input;
  float* out;
  int count, fault;
};

__global__ void __launch_bounds__(64) window_sum(const __grid_constant__ WindowParams params) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  // at kOverlappingBlocks
  if (params.fault == kOverlappingBlocks && blockIdx.x > 0 && threadIdx.x == 0) params.out[i - 1] = 0;
  if (i >= params.count) return;
  const int latest = params.count - 5 + (params.fault == kWindowTooLong ? 1 : 0);
  int start = i - 2 > 0 ? i - 2 : params.fault == kWindowTooEarly ? -1 : 0;
  if (start > latest) start = latest;
  float sum = 0;
  // at kWindowTooLong, kWindowTooEarly
  for (int j = start; j < start + 5; ++j) sum += params.input[j];
  // at kWritesInput
  if (params.fault == kWritesInput) const_cast<float*>(params.input)[i] = sum;
  if (params.fault == kMisalignedStore) {
    auto* pair = reinterpret_cast<uint64_t*>(params.out + (i / 2 * 2 + 1) % (params.count - 1));
    // at kMisalignedStore
    if (i % 2 == 0) *pair = 0;
  }
  // at kOverlappingBlocks
  params.out[i] = sum;
}

// Every thread hands a value to its neighbour, through 2-byte words of shared memory and by shuffles.
struct ExchangeParams {
  int* out;
  int fault;
};

__device__ __forceinline__ int from_neighbour(int value, int lane) {
  // at kDivergentShuffle
  return shuffle(value, (lane + 1) % 32);
}

__global__ void __launch_bounds__(128) exchange(const __grid_constant__ ExchangeParams params) {
  const int thread = threadIdx.x, lane = thread % 32;
  auto* words = reinterpret_cast<uint16_t*>(dynamic_shared());
  if (params.fault == kLeavesEarly && thread == 77) return;
  // at kMissingWarpSync
  if (params.fault != kUninitialised || thread != 3) words[thread] = static_cast<uint16_t>(thread);
  if (params.fault != kMissingWarpSync) warp_sync();
  // at kMissingWarpSync, kUninitialised
  const int neighbour = words[thread / 32 * 32 + (lane + 1) % 32];
  int sum = neighbour;
  if (params.fault == kDivergentShuffle && lane < 16) {
    // at kDivergentShuffle
    sum += shuffle(lane, (lane + 1) % 32);
  } else {
    sum += from_neighbour(lane, lane);
  }
  sum += shuffle_xor(lane, 1) + warp_max(lane) + warp_min(-lane) + (warp_all(lane < 32) ? 1 : 0) +
         (warp_any(lane == 5) ? 1 : 0);
  if (params.fault == kDivergentBarrier && lane == 7) {
    // at kDivergentBarrier
    block_sync();
  } else {
    // at kDivergentBarrier, kLeavesEarly
    block_sync();
  }
  // at kSharedOverrun
  if (params.fault == kSharedOverrun && thread == 127) words[thread + 1] = 0;
  const int opposite = words[127 - thread];
  params.out[thread] = sum + opposite;
}

}  // namespace jax_na::cuda
