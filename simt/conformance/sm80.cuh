// SPDX-License-Identifier: Apache-2.0
// Kernels that do nothing but use the wrappers of cuda/ptx/sm80.cuh. A GPU and the executor must give the same results:
// conformance.py runs both.
#pragma once

#include "cuda/ptx/element.cuh"

namespace jax_na::cuda {

// Every kernel reads `in` and writes `out`, words whose meaning conformance.py knows.
struct Words {
  const uint32_t* in;
  uint32_t* out;
};

// in: any bits x, one per thread of the grid; out: 7 words per thread.
__global__ void numbers(const __grid_constant__ Words params) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, count = gridDim.x * blockDim.x;
  const float input = bits_float(params.in[i]), y = bits_float(params.in[(i + 1) % count]);
  uint32_t* out = params.out + 7 * i;
  out[0] = float_to_f16(input) | uint32_t{float_to_bf16(input)} << 16;
  out[1] = pack_f16(input, y);
  out[2] = pack_bf16(input, y);
  out[3] = to_tf32(input);
  out[4] = float_bits(f16_to_float(static_cast<uint16_t>(i)));
  out[5] = float_bits(bf16_to_float(static_cast<uint16_t>(i)));
  out[6] = float_bits(exp2_approx(input));
}

// in: value, lane, mask per thread of one block; out: 8 words per thread. The last has no bit set: shared memory is
// aligned, and a vote has the bits that shuffles collect.
__global__ void warps(const __grid_constant__ Words params) {
  const uint32_t* in = params.in + 3 * threadIdx.x;
  uint32_t* out = params.out + 8 * threadIdx.x;
  const auto value = static_cast<int>(in[0]), lane = static_cast<int>(in[1] % 32),
             mask = static_cast<int>(params.in[2] % 32);
  out[0] = shuffle(in[0], lane);
  out[1] = float_bits(shuffle_xor(bits_float(in[0]), mask));
  out[2] = static_cast<uint32_t>(warp_min(value));
  out[3] = static_cast<uint32_t>(warp_max(value));
  out[4] = warp_all(value > -2000000000);
  out[5] = warp_any(value > 2000000000);
  out[6] = float_bits(read_only(reinterpret_cast<const float*>(in)));
  const bool vote = in[0] % 2 == 1;
  uint32_t votes = 0;
  for (int i = 0; i < 32; ++i) votes |= shuffle(uint32_t{vote}, i) << i;
  out[7] = shared_address(dynamic_shared()) % 1024 | (warp_ballot(vote) ^ votes);
}

// in: 512 chunks of 16 bytes, then per thread of one block: which chunk is copied to chunk (thread + 128 j), j < 4,
// with bit 31 for zeros instead; then the chunk whose address the thread gives to ldmatrix. out: 8 words per thread.
__global__ void copies(const __grid_constant__ Words params) {
  const int thread = threadIdx.x;
  const uint32_t* choice = params.in + 4 * 512 + 5 * thread;
  const uint32_t shared = shared_address(dynamic_shared());
  for (int j = 0; j < 4; ++j) {
    cp_async16(shared + 16 * (thread + 128 * j), params.in + 4 * (choice[j] & 511), choice[j] >> 31 == 0);
    cp_async_commit();
  }
  cp_async_wait<1>();
  cp_async_wait<0>();
  block_sync();
  uint32_t rows[4], columns[4];
  ldmatrix_x4(rows, shared + 16 * (choice[4] & 511));
  ldmatrix_x4_trans(columns, shared + 16 * (choice[4] & 511));
  for (int i = 0; i < 4; ++i) params.out[8 * thread + i] = rows[i], params.out[8 * thread + 4 + i] = columns[i];
}

// in: a, b and d, 4 + 2 + 4 words per thread of one warp, for each of f16, bf16, TF32; out: d.
__global__ void products(const __grid_constant__ Words params) {
  for (int type = 0; type < 3; ++type) {
    const uint32_t* in = params.in + 10 * (32 * type + threadIdx.x);
    const uint32_t a[4] = {in[0], in[1], in[2], in[3]};
    float d[4] = {bits_float(in[6]), bits_float(in[7]), bits_float(in[8]), bits_float(in[9])};
    if (type == 0) mma_f16(d, a, in[4], in[5]);
    if (type == 1) mma_bf16(d, a, in[4], in[5]);
    if (type == 2) mma_tf32(d, a, in[4], in[5]);
    for (int i = 0; i < 4; ++i) params.out[4 * (32 * type + threadIdx.x) + i] = float_bits(d[i]);
  }
}

}  // namespace jax_na::cuda
