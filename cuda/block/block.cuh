// SPDX-License-Identifier: Apache-2.0
// Which part of a problem a thread block computes: its tile of rows, and the boxes of columns that they see.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "cuda/geometry/mask.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// What every kernel of tiles knows of its problem.
struct Geometry {
  Problem problem;
  Tiling tiling;
  Repeats repeats;
  uint32_t tiles;          // row tiles of one head
  const int32_t* offsets;  // [rank, 2] in device memory
  const float* rpb;        // [heads, bias_entries] or null
  float premultiplier;     // scores become score * premultiplier + log2(e) * bias;
  float factor;            // times this they are exponents of 2
};

// Coordinates [first, first + count) of the tokens of one side that are present.
struct Grid {
  int first[kAxes], count[kAxes];

  __device__ __forceinline__ int64_t tokens() const { return int64_t{count[0]} * count[1] * count[2]; }
  __device__ __forceinline__ Span span(int axis) const { return {first[axis], count[axis]}; }
};

// The block's own part of the problem.
struct Block {
  Extent axis[kAxes];
  Grid rows, columns;
  int64_t batch;
  int head;       // of the rows: a query head, or a key head
  bool complete;  // all windows of its queries lie inside the keys present
};

// What is present along an axis. Offsets come from device memory and cannot be checked before the launch: illegal ones
// count as 0 and `legal` is false.
template <Side kSide>
__device__ __forceinline__ Span read_span(const Geometry& geometry, int axis, bool& legal) {
  const Problem& problem = geometry.problem;
  const int given = axis - kAxes + problem.rank;  // leading axes of length one have no offsets
  const int count = kSide == Side::kQueries ? problem.nq[axis] : problem.nk[axis];
  const int first = given < 0 ? 0 : geometry.offsets[2 * given + (kSide == Side::kQueries ? 0 : 1)];
  if (first >= 0 && first <= problem.axis[axis].length - count) return {first, count};
  legal = false;
  return {0, count};
}

template <Side kSide>
__device__ __forceinline__ Grid read_grid(const Geometry& geometry, bool& legal) {
  Grid grid;
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) {
    const Span span = read_span<kSide>(geometry, axis, legal);
    grid.first[axis] = span.first;
    grid.count[axis] = span.count;
  }
  return grid;
}

// False for a superfluous block. `index` counts tiles fastest, then `heads`, then the batch.
template <Side kRowSide>
__device__ __forceinline__ bool find_block(const Geometry& geometry, uint32_t index, uint32_t heads, Block& block) {
  constexpr Side kColumnSide = kRowSide == Side::kQueries ? Side::kKeys : Side::kQueries;
  block.complete = true;
  block.rows = read_grid<kRowSide>(geometry, block.complete);
  block.columns = read_grid<kColumnSide>(geometry, block.complete);
  uint32_t tile = index % geometry.tiles;
  index /= geometry.tiles;
  block.head = static_cast<int>(index % heads);
  block.batch = index / heads;
  bool exists = true;
#pragma unroll
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    const uint32_t tiles = geometry.tiling.tiles[axis] * geometry.problem.axis[axis].dilation;
    block.axis[axis] =
        locate<kRowSide>(geometry.problem, geometry.tiling, {block.rows.span(axis), block.columns.span(axis)}, axis,
                         static_cast<int>(tile % tiles), block.complete);
    tile /= tiles;
    exists = exists && block.axis[axis].rows.stop > block.axis[axis].rows.start;
  }
  return exists;
}

// After a loop, the block of the kernel found anew: what the loop does not need of it occupies no registers there.
template <Side kRowSide>
__device__ __forceinline__ Block find_block_again(const Geometry& geometry, uint32_t heads) {
  Block block;
  find_block<kRowSide>(geometry, renewed(blockIdx.x), heads, block);
  return block;
}

// A box of tokens: first positions, and where along each axis tokens end.
struct Box {
  int start[kAxes], stop[kAxes];
};
__device__ __forceinline__ Box row_box(const Block& block) {
  Box box;
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) {
    box.start[axis] = block.axis[axis].origin;
    box.stop[axis] = block.axis[axis].rows.stop;
  }
  return box;
}
__device__ __forceinline__ Box column_box(const Tiling& tiling, const Block& block, const Walk& walk) {
  Box box;
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) {
    box.start[axis] = box_start(tiling, block.axis[axis], walk, axis);
    box.stop[axis] = block.axis[axis].columns.stop;
  }
  return box;
}

}  // namespace jax_na::cuda
