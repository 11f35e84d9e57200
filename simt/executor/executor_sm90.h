// SPDX-License-Identifier: Apache-2.0
// The executor's part for compute capability 9.0: what device/sm90.h calls. cuda/ptx/sm90.cuh and cuda/ptx/wgmma.cuh
// explain.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "simt/executor/executor.h"

namespace simt {

// A view of global memory for tensor copies, five axes, innermost first. Elements have 2 bytes.
struct TensorMap {
  char* data;
  uint64_t extent[5];
  uint64_t stride[5];  // in bytes; stride[0] is the element's size
  uint32_t count[5];   // elements of a copy along each axis, every step[i]-th one
  uint32_t step[5];
  int swizzle;  // as in matrix descriptors: 0 none, 1: 128, 2: 64, 3: 32 bytes
};

void mbarrier_init(uint32_t barrier, int count);
void fence_mbarrier_init();
void mbarrier_arrive(uint32_t barrier);
void mbarrier_expect_tx(uint32_t barrier, int bytes);
void mbarrier_wait(uint32_t barrier, int parity);

void tensor_load(uint32_t to, const TensorMap* map, uint32_t barrier, const int (&coordinate)[5]);
void fence_proxy_async();

void named_barrier_sync(int id, int threads);
void named_barrier_arrive(int id, int threads);
void set_max_registers(int registers, bool increase);

void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);

struct WgmmaShape {
  Type type;
  int n;
  bool right_major_n, accumulate;
};
// sums (64 x n) = left right or sums += left right; the left operand from its descriptor if `left_registers` is null.
void wgmma(const WgmmaShape& shape, float* sums, uint64_t left, const uint32_t* left_registers, uint64_t right);

}  // namespace simt
