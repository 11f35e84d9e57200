// SPDX-License-Identifier: Apache-2.0
// As sm80.cuh, with the wrappers of cuda/ptx/sm90.cuh and cuda/ptx/wgmma.cuh.
#pragma once

#include "cuda/ptx/tensor_map.h"
#include "cuda/ptx/wgmma.cuh"
#include "simt/conformance/sm80.cuh"

namespace jax_na::cuda {

// Two warps hand 32 values over, eight times, through two buffers; the second warp returns them with its own sum so
// far. in, out: 8 x 32 words.
__global__ void hand_over(const __grid_constant__ Words params) {
  const int thread = threadIdx.x, lane = thread % 32;
  auto* words = reinterpret_cast<uint32_t*>(dynamic_shared());
  const uint32_t barriers = shared_address(dynamic_shared()) + 256;  // full 0, full 1, empty 0, empty 1
  if (thread == 0) {
    for (int i = 0; i < 4; ++i) mbarrier_init(barriers + 8 * i, 32);
    fence_mbarrier_init();
  }
  block_sync();
  uint32_t sum = 0;
  for (int step = 0; step < 8; ++step) {
    uint32_t* buffer = words + 32 * (step % 2);
    const uint32_t full = barriers + 8 * (step % 2), empty = full + 16;
    if (thread < 32) {
      mbarrier_wait(empty, step / 2 % 2 ^ 1);
      buffer[lane] = params.in[32 * step + lane];
      mbarrier_arrive(full);
    } else {
      mbarrier_wait(full, step / 2 % 2);
      sum += buffer[31 - lane];
      mbarrier_arrive(empty);
      params.out[32 * step + lane] = sum;
    }
  }
}

// Three warpgroups: the first writes words, arrives, and gives up registers; the others wait for it, each at a barrier
// of its own. in: 128 words, out: 256.
__global__ void __launch_bounds__(384, 1) parts(const __grid_constant__ Words params) {
  const int thread = threadIdx.x % 128;
  const int group = shuffle(static_cast<int>(threadIdx.x) / 128, 0);
  auto* words = reinterpret_cast<uint32_t*>(dynamic_shared());
  if (group == 0) {
    set_max_registers_dec<40>();
    words[thread] = params.in[thread];
    named_barrier_arrive(1, 256);
    named_barrier_arrive(2, 256);
  } else {
    set_max_registers_inc<232>();
    named_barrier_sync(group, 256);
    params.out[(group - 1) * 128 + thread] = words[127 - thread] + group;
  }
}

// Each block loads one box at the coordinates in[5 b] and returns its bytes as they lie in shared memory.
struct LoadParams {
  TensorMap map;
  Words words;
  int bytes;
};
__global__ void tensor_load(const __grid_constant__ LoadParams params) {
  const uint32_t box = shared_address(dynamic_shared()), barrier = box + params.bytes;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
    const auto* c = reinterpret_cast<const int*>(params.words.in) + 5 * blockIdx.x;
    mbarrier_expect_tx(barrier, params.bytes);
    tma_load(box, &params.map, barrier, {c[0], c[1], c[2], c[3], c[4]});
  }
  block_sync();
  mbarrier_wait(barrier, 0);
  const auto* words = reinterpret_cast<const uint32_t*>(dynamic_shared());
  for (int i = threadIdx.x; i < params.bytes / 4; i += blockDim.x)
    params.words.out[blockIdx.x * (params.bytes / 4) + i] = words[i];
}

// Products of one warpgroup with every layout, from kWgmmaShared bytes of random operands. in: the operands; then 4
// words of a left operand per thread. out: N / 2 sums per thread and product: 3 swizzles x (2 + 2) combinations of
// where the left operand is and what the right one's major axis is, each twice.
constexpr int kWgmmaShared = 96 << 10;

// Two descriptors for each layout: with groups of terms inside of rows of M or N, and the other way round.
__device__ __forceinline__ uint64_t operand(uint32_t address, bool major_n, bool outer, int extent, Swizzle swizzle) {
  const int bytes = 256 >> static_cast<int>(swizzle), pattern = 8 * bytes, pieces = extent * 2 / bytes;
  if (!major_n)
    return matrix_descriptor(address + (outer && bytes > 32 ? 32 : 0), 16, outer ? 2 * pattern : pattern, swizzle);
  return matrix_descriptor(address, outer ? pattern : 2 * pattern, outer ? pieces * pattern : pattern, swizzle);
}

template <class Element, int N, bool kRightMajorN>
__device__ __forceinline__ void one_wgmma_ss(float* out, Swizzle swizzle) {
  const uint32_t shared = shared_address(dynamic_shared());
  float first[N / 2], second[N / 2];
  for (int i = 0; i < N / 2; ++i) first[i] = static_cast<float>(i), second[i] = 0.5f;
  keep(first);
  keep(second);
  wgmma_fence();
  const uint64_t left = operand(shared, false, false, 64, swizzle),
                 left_outer = operand(shared, false, true, 64, swizzle);
  const uint64_t right = operand(shared + (32 << 10), kRightMajorN, false, N, swizzle),
                 right_outer = operand(shared + (32 << 10), kRightMajorN, true, N, swizzle);
  wgmma_ss<Element, N, kRightMajorN>(first, left, right, true);
  wgmma_commit();
  wgmma_ss<Element, N, kRightMajorN>(second, left_outer, right_outer, false);
  wgmma_ss<Element, N, kRightMajorN>(second, left, right_outer, true);
  wgmma_commit();
  wgmma_wait<1>();
  keep(first);
  for (int i = 0; i < N / 2; ++i) out[i] = first[i];
  wgmma_wait<0>();
  keep(second);
  for (int i = 0; i < N / 2; ++i) out[N / 2 + i] = second[i];
}

template <class Element, int N, bool kRightMajorN>
__device__ __forceinline__ void one_wgmma_rs(float* out, const uint32_t* registers, Swizzle swizzle) {
  const uint32_t shared = shared_address(dynamic_shared()) + (32 << 10);
  const uint32_t left[4] = {registers[0], registers[1], registers[2], registers[3]};
  for (int outer = 0; outer < 2; ++outer) {
    float sums[N / 2];
    for (int i = 0; i < N / 2; ++i) sums[i] = static_cast<float>(i);
    keep(sums);
    wgmma_fence();
    wgmma_rs<Element, N, kRightMajorN>(sums, left, operand(shared, kRightMajorN, outer == 1, N, swizzle), outer == 1);
    wgmma_commit();
    wgmma_wait<0>();
    keep(sums);
    for (int i = 0; i < N / 2; ++i) out[outer * (N / 2) + i] = sums[i];
  }
}

template <class Element, int N>
__global__ void __launch_bounds__(128, 1) wgmmas(const __grid_constant__ Words params) {
  auto* words = reinterpret_cast<uint32_t*>(dynamic_shared());
  for (int i = threadIdx.x; i < kWgmmaShared / 4; i += 128) words[i] = params.in[i];
  fence_proxy_async();
  block_sync();
  const uint32_t* registers = params.in + kWgmmaShared / 4 + 4 * threadIdx.x;
  auto* out = reinterpret_cast<float*>(params.out) + threadIdx.x * (3 * 4 * N);
  const Swizzle all[] = {Swizzle::k128, Swizzle::k64, Swizzle::k32};
  for (const Swizzle swizzle : all) {
    one_wgmma_ss<Element, N, false>(out, swizzle);
    one_wgmma_ss<Element, N, true>(out + N, swizzle);
    one_wgmma_rs<Element, N, false>(out + 2 * N, registers, swizzle);
    one_wgmma_rs<Element, N, true>(out + 3 * N, registers, swizzle);
    out += 4 * N;
  }
}

}  // namespace jax_na::cuda
