// SPDX-License-Identifier: Apache-2.0
// A tile in shared memory: rows (tokens) of kRowBytes, in chunks of 16 bytes that are permuted inside their row, so
// that eight rows read at the same chunk lie in different banks.
#pragma once

#include <stdint.h>

#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

template <int kRowBytes>
struct SharedTile {
  static constexpr int kChunks = kRowBytes / 16;
  static_assert(kChunks == 4 || kChunks % 8 == 0, "rows of 64 bytes or a multiple of 128");

  char* base;

  __device__ __forceinline__ char* chunk(int row, int number) const {
    const int permuted = kChunks >= 8 ? number ^ (row & 7) : number ^ (row >> 1 & 3);
    return base + row * kRowBytes + permuted * 16;
  }
  // From the address of a chunk to that of the chunk `distance` later in the same row. `distance` is a power of two
  // that is larger than the first chunk's number, or a multiple of one: one instruction, because tiles are aligned to
  // their rows and the two numbers have no bit in common.
  static __device__ __forceinline__ uint32_t other_chunk(uint32_t address, int distance) {
    return address ^ static_cast<uint32_t>(distance * 16);
  }
  __device__ __forceinline__ uint32_t address(int row, int number) const { return shared_address(chunk(row, number)); }
  __device__ __forceinline__ uint32_t word(int row, int number, int index) const {
    return reinterpret_cast<const uint32_t*>(chunk(row, number))[index];
  }
};

}  // namespace jax_na::cuda
