// SPDX-License-Identifier: Apache-2.0
// Rows of a result that are computed again by their definition.
//
// A tile is multiplied as a whole, with weights of 0 for the pairs outside the windows. That is right if all of it is
// finite; but 0 times an infinity or NaN is NaN, whoever sees it. So the rows of a result that are not finite are
// suspects: a warp looks for them where it stores its rows, and computes them again from what they see alone.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/block/tokens.cuh"
#include "cuda/ptx/element.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Of a warp whose rows begin at `first_row`, which of the thread's own rows are suspects: bit Own.
struct Suspects {
  int first_row;
  uint32_t rows;

  __device__ __forceinline__ bool some() const { return warp_any(rows != 0); }
};

// Zero while all values added to it are finite, then NaN.
struct Finite {
  float zero = 0;

  __device__ __forceinline__ void add(float value) { zero += 0 * value; }
  __device__ __forceinline__ bool all() const { return zero == 0; }
};

// Calls body(index of the row in [batch, tokens, heads]) for every suspect of the warp, all lanes together. What the
// lanes have stored of these rows comes before.
template <class Body>
__device__ __forceinline__ void for_each_suspect(const Geometry& geometry, const Block& block, int heads,
                                                 const Suspects& suspects, const Body& body) {
  uint32_t rows = suspects.rows | shuffle_xor(suspects.rows, 1);
  rows |= shuffle_xor(rows, 2);  // the four lanes that share the rows
  warp_sync();
#pragma unroll 1
  for (int i = 0; i < 32; ++i) {
    if (!(shuffle(rows, i % 8 * 4) >> i / 8 & 1)) continue;  // row_of(first_row, own row i / 8, lane i % 8 * 4)
    body(row_index(geometry, block, heads, suspects.first_row + i));
  }
}

// The problem with the offsets of the call, which must be legal, in shared memory that is the warp's own.
__device__ __forceinline__ const Problem& placed(const Geometry& geometry, char* room) {
  Problem& problem = *reinterpret_cast<Problem*>(room);
  warp_sync();  // nobody reads what is there
  if (threadIdx.x % 32 == 0) {
    problem = geometry.problem;
    place(problem, geometry.offsets);
  }
  warp_sync();
  return problem;
}

}  // namespace jax_na::cuda
