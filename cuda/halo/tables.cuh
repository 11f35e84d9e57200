// SPDX-License-Identifier: Apache-2.0
// The tables of a halo kernel: where the columns of the present tile are, and which of them its rows see.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "common/window.h"
#include "cuda/block/block.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/halo/config.h"
#include "cuda/halo/shape.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// A column of the halo. One that does not exist is the first that does: no row sees it.
struct alignas(8) HaloToken {
  uint32_t row;    // in [tokens, heads] of its side
  uint32_t place;  // bytes to its first chunk, from the first column of the halo
};

// The first column of a warp's box.
struct HaloBox {
  int place;   // bytes from the first column of the halo
  int number;  // its number if the halo's columns were those of a box
};

// What there is along an axis of a tile: no row, rows with all that they see, queries that lack keys.
enum HaloState { kNoRows, kComplete, kIncomplete };

// Never reached by adding the parts of other axes: a token with such a part does not exist.
constexpr int kNowhere = INT32_MIN / 2;

template <class Shape>
struct HaloTables {
  static constexpr Side kRowSide = Shape::kRowSide;
  static constexpr bool kOfQueries = kRowSide == Side::kQueries;

  const HaloParams<typename Shape::Call>& p;
  char* shared;

  template <class Word>
  __device__ __forceinline__ Word* at(int offset) const {
    return reinterpret_cast<Word*>(shared + offset);
  }
  __device__ __forceinline__ const Problem& problem() const { return p.call.geometry.problem; }
  __device__ __forceinline__ const Geometry& geometry() const { return p.call.geometry; }
  __device__ __forceinline__ const Tiling& tiling() const { return p.call.geometry.tiling; }

  __device__ __forceinline__ const HaloAxis& sizes(int axis) const { return p.sizes.axis[axis]; }

  // Columns of the tile's halo and of its boxes along an axis, and in all.
  __device__ __forceinline__ HaloExtents& extents() const { return *at<HaloExtents>(p.layout.extents); }
  __device__ __forceinline__ int halo_length(int axis) const {
    return kOfQueries ? sizes(axis).halo : extents().halo[axis];
  }
  __device__ __forceinline__ int box_length(int axis) const {
    return kOfQueries ? sizes(axis).box : extents().box[axis];
  }
  __device__ __forceinline__ int halo_tokens() const {
    return kOfQueries ? p.sizes.halo_tokens : halo_length(0) * halo_length(1) * halo_length(2);
  }
  __device__ __forceinline__ int box_tokens() const {
    return kOfQueries ? p.sizes.box_tokens : box_length(0) * box_length(1) * box_length(2);
  }
  __device__ __forceinline__ int parts() const {
    return kOfQueries ? p.sizes.parts : (box_tokens() + Shape::kColumns - 1) / Shape::kColumns;
  }

  // Entries of the tables by position.
  __device__ __forceinline__ int& row_part(int axis, int position) const {
    return at<int>(p.layout.row_parts)[sizes(axis).positions + position];
  }
  __device__ __forceinline__ int& bias_part(int axis, int position) const {
    return at<int>(p.layout.bias_parts)[sizes(axis).positions + position];
  }
  __device__ __forceinline__ int& box(int axis, int position) const {
    return at<int>(p.layout.boxes)[sizes(axis).positions + position];
  }
  __device__ __forceinline__ uint32_t& seen(int part, int axis, int position, int column) const {
    return at<uint32_t>(p.layout.seen)[(part * p.sizes.positions + sizes(axis).positions + position) * 4 + column];
  }
  __device__ __forceinline__ uint32_t seen(int part, const int (&position)[kAxes], int column) const {
    return seen(part, 0, position[0], column) & seen(part, 1, position[1], column) & seen(part, 2, position[2], column);
  }

  // With a mask, which keys of a part of the warp's box exist. The other tables are kept from batch entry to batch
  // entry, this one is not.
  __device__ __forceinline__ uint32_t& existing(int part, int column) const {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    return at<uint32_t>(p.layout.existing)[(warp * p.sizes.parts + part) * 4 + column];
  }

  __device__ __forceinline__ int state(int axis) const { return at<int>(p.layout.state)[axis]; }
  __device__ __forceinline__ bool has_rows() const {
    return state(0) != kNoRows && state(1) != kNoRows && state(2) != kNoRows;
  }
  __device__ __forceinline__ bool is_complete() const {
    return state(0) == kComplete && state(1) == kComplete && state(2) == kComplete;
  }

  // Place of a row in [tokens, heads] of its side, negative if it does not exist.
  __device__ __forceinline__ int row_place(int row) const { return at<int>(p.layout.rows)[row]; }
  __device__ __forceinline__ HaloBox warp_box() const {
    return at<HaloBox>(p.layout.warps)[static_cast<int>(threadIdx.x) / 32];
  }

  // Memory of a warp's own, and whether a warp has met suspects (block/suspects.cuh).
  __device__ __forceinline__ char* room() const {
    return shared + p.layout.room + static_cast<int>(threadIdx.x) / 32 * kHaloSuspectRoom;
  }
  __device__ __forceinline__ int& has_suspects() const {
    return at<int>(p.layout.suspects)[static_cast<int>(threadIdx.x) / 32];
  }
  __device__ __forceinline__ bool some_suspects() const {
    const int* warps = at<int>(p.layout.suspects);
    return (warps[0] | warps[1] | warps[2] | warps[3]) != 0;
  }

  // Where a row is inside the block's tile; rows are counted warp by warp.
  __device__ __forceinline__ void row_position(int row, int (&position)[kAxes]) const {
    int warp = row / 16;
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      const int within = tiling().columns[axis], bits = tiling().rows[axis] - within;
      position[axis] = ((warp & ((1 << bits) - 1)) << within) + inside_box(tiling().columns, row % 16, axis);
      warp >>= bits;
    }
  }

  // Chunks are permuted inside their row by the number of the column in a box: eight neighbours in a row of any box
  // have eight different turns, and so the eight columns that ldmatrix reads lie in different banks.
  static __device__ __forceinline__ uint32_t turn_of(int number) { return static_cast<uint32_t>(number % 8) * 16; }
};

}  // namespace jax_na::cuda
