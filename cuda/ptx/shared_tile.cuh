// SPDX-License-Identifier: Apache-2.0
// A tile in shared memory: rows (tokens) of kRowBytes, in chunks of 16 bytes that are permuted inside their row, so
// that eight rows read at the same chunk lie in different banks.
#pragma once

#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

template <int kRowBytes>
struct SharedTile {
  static constexpr int kChunks = kRowBytes / 16;
  static_assert(kChunks == 4 || kChunks % 8 == 0, "rows of 64 bytes or a multiple of 128");

  char* base;

  __device__ __forceinline__ char* chunk(int row, int c) const {
    const int permuted = kChunks >= 8 ? c ^ (row & 7) : c ^ (row >> 1 & 3);
    return base + row * kRowBytes + permuted * 16;
  }
  // From the address of chunk `c`, below `distance`, to that of chunk c + distance of the same row; `distance` is a
  // power of two or a multiple of one that is larger than c. One instruction, because tiles are aligned to their rows.
  static __device__ __forceinline__ uint32_t other_chunk(uint32_t address, int distance) {
    return address ^ static_cast<uint32_t>(distance * 16);
  }
  __device__ __forceinline__ uint32_t address(int row, int c) const { return shared_address(chunk(row, c)); }
  __device__ __forceinline__ uint32_t word(int row, int c, int i) const {
    return reinterpret_cast<const uint32_t*>(chunk(row, c))[i];
  }
};

}  // namespace jax_na::cuda
