// SPDX-License-Identifier: Apache-2.0
// What is known of a portable kernel when it is compiled: arithmetic, extents of its tiles, room that they need.
#pragma once

#include "common/problem.h"
#include "cuda/block/fragment.cuh"
#include "cuda/ptx/shared_tile.cuh"

namespace jax_na::cuda {

// kWarps * 16 * kRowTiles rows stay, kColumns columns at a time are streamed through kStages buffers.
template <class Math_, int kFeatures_, int kWarps_, int kRowTiles_, int kColumns_, int kStages_>
struct KernelShape {
  using Math = Math_;
  using Element = typename Math::Element;
  static constexpr int kFeatures = kFeatures_, kWarps = kWarps_, kRowTiles = kRowTiles_, kColumns = kColumns_;
  static constexpr int kStages = kStages_, kThreads = 32 * kWarps, kRows = 16 * kWarps * kRowTiles;
  static constexpr int kRowBytes = kFeatures * static_cast<int>(sizeof(Element));
  static constexpr int kColumnTiles = kColumns / 8;
  // Rows and columns of a fragment that one thread has.
  static constexpr int kThreadRows = 2 * kRowTiles, kThreadColumns = 2 * kColumnTiles;
  // Warps that a multiprocessor shall have room for: 12 leave 168 registers to a thread, 8 leave 255. More warps hide
  // more latency; the compiler alone would spill to fit in more.
  static constexpr int kMinWarps = kRowTiles == 1 && kRowBytes <= 128 && sizeof(Element) == 2 ? 12 : 8;
  // Blocks, of kernels that need a few registers more than others of this shape or not.
  static constexpr int min_blocks(bool needs_more) { return (needs_more ? 8 : kMinWarps) / kWarps; }
  using Tile = SharedTile<kRowBytes>;
  using Scores = Fragment<kRowTiles, kColumnTiles>;
  static constexpr int kRowTileBytes = kRows * kRowBytes, kColumnTileBytes = kColumns * kRowBytes;
  // What each row sees, and what all rows of each warp see.
  static constexpr int kWindowBytes = kRows * 2 * kAxes * static_cast<int>(sizeof(int));
  static constexpr int kInnerBytes = kWarps * 2 * kAxes * static_cast<int>(sizeof(int));
};

// The buffers of two operands of the columns, kStages for each, side by side in shared memory.
template <class Shape>
struct ColumnTiles {
  char* base;

  __device__ __forceinline__ typename Shape::Tile at(int operand, int stage) const {
    return {base + (operand * Shape::kStages + stage) * Shape::kColumnTileBytes};
  }
};

}  // namespace jax_na::cuda
