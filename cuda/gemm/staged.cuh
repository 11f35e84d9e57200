// SPDX-License-Identifier: Apache-2.0
// What the GEMM kernels share: rows of weights in memory, the same rows staged in shared memory, and where in them the
// fragments of a warp's products lie.
//
// The slot of a pair is row-major over the axes in (key - start of the query's window). So with the distances between
// neighbours along each axis it is a sum of one part per axis, and of one part per row and one per column.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/scores.cuh"
#include "cuda/block/tokens.cuh"
#include "cuda/block/warp.cuh"
#include "cuda/gemm/params.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// A vector is what moves in one piece, 16 bytes.
struct alignas(16) Vector {
  uint32_t words[4];
};
template <class Weight>
__device__ __forceinline__ constexpr int per_vector() {
  return 16 / static_cast<int>(sizeof(Weight));
}
template <class Weight>
__device__ __forceinline__ int aligned_down(int slot) {
  return slot & ~(per_vector<Weight>() - 1);
}

// Lanes that move one row of weights side by side.
constexpr int kLanesPerRow = 8, kRowsAtOnce = 32 / kLanesPerRow;

// Distance of slots, or of parts of one, from a difference of positions.
__device__ __forceinline__ int slot_of(const GemmParams& params, const int (&to)[kAxes], const int (&from)[kAxes]) {
  int slot = 0;
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) slot += (to[axis] - from[axis]) * params.slot_stride[axis];
  return slot;
}
// The part of token `index` of a tile or box.
__device__ __forceinline__ int slot_inside(const GemmParams& params, const int (&log2)[kAxes], int index) {
  int slot = 0;
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) slot += inside_box(log2, index, axis) * params.slot_stride[axis];
  return slot;
}

// Slots of a row whose keys come before `key`, in the order of a walk by steps along `last` (for -1: none). `start` is
// where the row's window starts.
__device__ __forceinline__ int slots_before(const GemmParams& params, int last, const int (&key)[kAxes],
                                            const int (&start)[kAxes]) {
  int slots = 0;
  bool inside = true;
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) {
    const int distance = key[axis] - start[axis], window = params.geometry.problem.axis[axis].kernel_size;
    if (axis > last || !inside) continue;
    slots += min(max(distance, 0), window) * params.slot_stride[axis];
    inside = distance >= 0 && distance < window;
  }
  return slots;
}

// Whether a phase of the walk ends with a step.
__device__ __forceinline__ bool starts_phase(const GemmParams& params, const Walk& before, const Walk& after) {
  bool changed = false;
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis)
    changed = changed || (axis <= params.staging.axis && before.at[axis] != after.at[axis]);
  return changed;
}

// Where the window of a row of the tile starts.
template <class Shape>
__device__ __forceinline__ void read_starts(const Windows<Shape>& windows, int row, int (&start)[kAxes]) {
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) start[axis] = windows.start(axis, row);
}

// Where queries stay: where in the staged rows the first slot of a box would be, for this thread's rows. The box starts
// at `start`, its phase started at `phase`.
template <class Weight, class Shape>
__device__ __forceinline__ void staged_rows(const GemmParams& params, const Warp<Shape>& warp,
                                            const int (&start)[kAxes], const int (&phase)[kAxes],
                                            int (&result)[Shape::kThreadRows]) {
#pragma unroll
  for (int i = 0; i < Shape::kThreadRows; ++i) {  // for_each_own would spill a register on sm_80
    const Own number{i / 2, i % 2};
    const int row = warp.row(number);
    int seen[kAxes];
    read_starts(warp.windows, row, seen);
    result[number] = row * params.staging.slots + slot_of(params, start, seen) -
                     aligned_down<Weight>(slots_before(params, params.staging.axis, phase, seen));
  }
}

// Calls body(column, slots from the first column of a box) for this thread's own columns.
template <class Shape, class Body>
__device__ __forceinline__ void for_each_column(const GemmParams& params, const Warp<Shape>& warp, const Body& body) {
  const int (&log2)[kAxes] = params.geometry.tiling.columns;
  // The place of a column is a sum of different powers of two, so its parts add up; the first of them is a constant.
  for_each_own<Shape::kThreadColumns>([&](Own column) {
    body(column,
         slot_inside(params, log2, 8 * column.tile) + slot_inside(params, log2, first_column(warp.lane) + column.part));
  });
}

// The columns of the box at `start` that this thread's rows see. False if the warp sees none.
template <class Shape>
__device__ __forceinline__ bool find_columns(const Warp<Shape>& warp, const int (&start)[kAxes],
                                             ColumnBits<Shape> (&bits)[Shape::kThreadRows]) {
  bool some = false;
  for_each_own<Shape::kThreadRows>([&](Own row) {
    bits[row] = columns_seen(warp, start, row);
    some = some || bits[row] != 0;  // of other threads' columns too, but of the same rows
  });
  return warp_any(some);
}

}  // namespace jax_na::cuda
