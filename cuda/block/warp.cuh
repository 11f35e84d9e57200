// SPDX-License-Identifier: Apache-2.0
// A warp of a block: which rows are its own, and what they see.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "common/window.h"
#include "cuda/block/arithmetic.cuh"
#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// What the rows of a block see, [2 * kAxes][kRows] in shared memory: starts, then stops. Behind them, for each warp,
// what all its rows see: it is needed once a box, and registers are scarce.
template <class Shape>
struct Windows {
  int* base;

  __device__ __forceinline__ int& start(int axis, int row) const { return base[axis * Shape::kRows + row]; }
  __device__ __forceinline__ int& stop(int axis, int row) const { return base[(kAxes + axis) * Shape::kRows + row]; }
  __device__ __forceinline__ Range seen(int axis, int row) const { return {start(axis, row), stop(axis, row)}; }

  // Start and stop along each axis, of the warp whose rows begin at `first_row`.
  __device__ __forceinline__ int* inner(int first_row) const {
    return base + 2 * kAxes * (Shape::kRows + first_row / (16 * Shape::kRowTiles));
  }

  // By all threads of the block. Rows that do not exist see [0, missing).
  template <Side kRowSide>
  __device__ __forceinline__ void store(const Geometry& geometry, const Block& block, int missing) const {
    for (int row = threadIdx.x; row < Shape::kRows; row += Shape::kThreads) {
#pragma unroll
      for (int axis = 0; axis < kAxes; ++axis) {
        const Extent& extent = block.axis[axis];
        const int position = extent.origin + inside_box(geometry.tiling.rows, row, axis);
        Range seen{0, missing};
        if (position < extent.rows.stop) {
          seen = seen_from<kRowSide>(geometry.problem.axis[axis], extent.length, position);
          seen = {max(seen.start, extent.present.start), min(seen.stop, extent.present.stop)};
        }
        start(axis, row) = seen.start;
        stop(axis, row) = seen.stop;
      }
    }
  }
};

// How much rows that do not exist shall see in fused kernels: nobody reads their results, so they need no mask and see
// everything, unless a bias would be looked up for them.
__device__ __forceinline__ int seen_by_missing(const Geometry& geometry) {
  return geometry.rpb == nullptr ? INT32_MAX : 0;
}

template <class Shape>
struct Warp {
  const Geometry& geometry;
  const Block& block;
  Windows<Shape> windows;
  int first_row;  // of the warp, in the block's tile
  int lane;

  // Places of the thread's own rows in the block's tile, and of its own columns in a box.
  __device__ __forceinline__ int row(Own number) const { return row_of(first_row, number, lane); }
  __device__ __forceinline__ int column(Own number) const { return column_of(number, lane); }

  // Per axis the columns that all rows of this warp see: boxes inside need no mask.
  __device__ __forceinline__ void find_inner(Range (&inner)[kAxes]) const {
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      int start = 0, stop = INT32_MAX;
#pragma unroll
      for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
        const int row = first_row + 16 * tile + lane % 16;
        start = max(start, windows.start(axis, row));
        stop = min(stop, windows.stop(axis, row));
      }
      inner[axis] = {warp_max(start), warp_min(stop)};
    }
  }
  __device__ __forceinline__ void store_inner() const {
    Range inner[kAxes];
    find_inner(inner);
    int* own = windows.inner(first_row);
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis)
      if (lane == 0) {
        own[2 * axis] = inner[axis].start;
        own[2 * axis + 1] = inner[axis].stop;
      }
    warp_sync();
  }

  // Products of the warp's rows, which are in `left`, with all rows of `right`: added to `sums`, or instead of them.
  template <class Sums, class Tile>
  __device__ __forceinline__ void add_scores(Sums& sums, Tile left, Tile right) const {
    add_score_product<typename Shape::Math>(sums, left, first_row, right, lane);
  }
  template <class Sums, class Tile>
  __device__ __forceinline__ void multiply(Sums& sums, Tile left, Tile right) const {
    score_product<typename Shape::Math>(sums, left, first_row, right, lane);
  }

  // sums += weights * features of the tokens in a tile, from the chunk `chunk` on.
  template <class Sums, class Weights, class Tile>
  __device__ __forceinline__ void add_weighted(Sums& sums, const Weights& weights, Tile tokens, int chunk = 0) const {
    weighted_product<typename Shape::Math>(sums, weights, tokens, chunk, lane);
  }
};

// The warp of this thread, in a kernel whose warps share the rows in order. Of threadIdx.x the compiler computes the
// lane anew where it is used, of what is renewed once: of wide rows that saves registers, of others it costs some.
template <class Shape>
__device__ __forceinline__ Warp<Shape> this_warp(const Geometry& geometry, const Block& block, char* windows) {
  const uint32_t thread = Shape::kRowBytes > 256 ? renewed(threadIdx.x) : threadIdx.x;
  const int lane = static_cast<int>(thread % 32), first_row = static_cast<int>(thread / 32) * 16 * Shape::kRowTiles;
  return {geometry, block, {reinterpret_cast<int*>(windows)}, first_row, lane};
}

}  // namespace jax_na::cuda
