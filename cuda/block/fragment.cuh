// SPDX-License-Identifier: Apache-2.0
// Which of a warp's sums a thread holds, and loops over them: the one place that knows the layout of the tensor cores.
//
// A fragment has 16 rows for each row tile and 8 columns (or features) for each column tile. A thread has every eighth
// row, from lane / 4 on, and of every 8 columns the two from 2 * (lane % 4) on: the four threads with the same lane / 4
// share their rows. Kernels number a thread's own rows and columns from 0 (Own); these numbers are constants once the
// loops are unrolled, so what is indexed by them stays in registers.
#pragma once

#include <math.h>

#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

template <int kRowTiles, int kColumnTiles>
using Fragment = float[kRowTiles][kColumnTiles][4];

// One of a thread's own rows or columns: it has two in every tile of the fragment. As a number, 2 * tile + part.
struct Own {
  int tile, part;

  __device__ __forceinline__ constexpr operator int() const { return 2 * tile + part; }
};

// Row that is the thread's own row, of a fragment whose rows begin at `first`.
__device__ __forceinline__ int row_of(int first, Own row, int lane) {
  return first + 16 * row.tile + 8 * row.part + lane / 4;
}

// The thread's first column, how far from it an own column is, and the column of the fragment that it is.
__device__ __forceinline__ int first_column(int lane) { return 2 * (lane % 4); }
__device__ __forceinline__ constexpr int column_step(Own column) { return 8 * column.tile + column.part; }
__device__ __forceinline__ int column_of(Own column, int lane) {
  return 8 * column.tile + first_column(lane) + column.part;
}

// The value in the thread's row and column; of a warpgroup's sums, which are a flat list with two rows, likewise.
template <int kRowTiles, int kColumnTiles>
__device__ __forceinline__ float& at(float (&sums)[kRowTiles][kColumnTiles][4], Own row, Own column) {
  return sums[row.tile][column.tile][2 * row.part + column.part];
}
template <int kRowTiles, int kColumnTiles>
__device__ __forceinline__ float at(const float (&sums)[kRowTiles][kColumnTiles][4], Own row, Own column) {
  return sums[row.tile][column.tile][2 * row.part + column.part];
}
template <int kSums>
__device__ __forceinline__ float& at(float (&sums)[kSums], Own row, Own column) {
  return sums[4 * column.tile + 2 * row.part + column.part];
}

// Calls body(row or column) for the first kCount of a thread's rows or columns, unrolled.
template <int kCount, class Body>
__device__ __forceinline__ void for_each_own(const Body& body) {
#pragma unroll
  for (int tile = 0; tile < kCount / 2; ++tile) {
    body(Own{tile, 0});
    body(Own{tile, 1});
  }
}

// Calls body(value, row, column) for all values of a thread.
template <class Sums, int kRowTiles, int kColumnTiles, class Body>
__device__ __forceinline__ void for_each(Sums (&sums)[kRowTiles][kColumnTiles][4], const Body& body) {
#pragma unroll
  for (int row_tile = 0; row_tile < kRowTiles; ++row_tile)
#pragma unroll
    for (int column_tile = 0; column_tile < kColumnTiles; ++column_tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) body(sums[row_tile][column_tile][i], Own{row_tile, i / 2}, Own{column_tile, i % 2});
}
template <int kSums, class Body>
__device__ __forceinline__ void for_each(float (&sums)[kSums], const Body& body) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) body(sums[i], Own{0, i / 2 % 2}, Own{i / 4, i % 2});
}

// Calls body(value, next value, column of the first one) for the neighbours in one of the thread's rows.
template <class Sums, int kRowTiles, int kColumnTiles, class Body>
__device__ __forceinline__ void for_each_pair(Sums (&sums)[kRowTiles][kColumnTiles][4], Own row, const Body& body) {
#pragma unroll
  for (int tile = 0; tile < kColumnTiles; ++tile) {
    Sums(&four)[4] = sums[row.tile][tile];
    body(four[2 * row.part], four[2 * row.part + 1], Own{tile, 0});
  }
}
template <int kSums, class Body>
__device__ __forceinline__ void for_each_pair(float (&sums)[kSums], Own row, const Body& body) {
#pragma unroll
  for (int tile = 0; tile < kSums / 4; ++tile)
    body(sums[4 * tile + 2 * row.part], sums[4 * tile + 2 * row.part + 1], Own{tile, 0});
}

template <int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void clear(float (&sums)[kRowTiles][kColumnTiles][4]) {
  for_each(sums, [](float& value, Own, Own) { value = 0; });
}

// Over the four threads that share a row.
__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, shuffle_xor(value, 1));
  return fmaxf(value, shuffle_xor(value, 2));
}
__device__ __forceinline__ float row_sum(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}

}  // namespace jax_na::cuda
