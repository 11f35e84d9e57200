// SPDX-License-Identifier: Apache-2.0
// Shared memory of the forward kernel for compute capability 9.0, and the two threads that fill it by tensor copies.
//
// Protocol. Keys and values are rings of kStages buffers each; box `step` of the walk is in buffer step % kStages, in
// round step / kStages. Per buffer there are two barriers:
//   full:  one arrival, which announces the bytes of the copies, and these bytes: a phase per round;
//   empty: one arrival per warp that computes, once it reads the buffer no more: a phase per round.
// The copying thread waits for `empty` of the round before (parity r - 1, which a new barrier counts as complete), then
// announces and copies; the computing warps wait for `full` of this round (parity r).
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "common/window.h"
#include "cuda/block/block.cuh"
#include "cuda/fused/config.h"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/shared_tile.cuh"
#include "cuda/ptx/sm90.cuh"

namespace jax_na::cuda {

// A tile of tokens in shared memory is one panel per 64 features (32 of narrower heads), a panel one row per token.
// Tensor copies permute its chunks as SharedTile does.
template <class Type_, int kFeatures_>
struct HopperShape {
  using Type = Type_;
  using Element = typename Type::Element;
  static constexpr int kFeatures = kFeatures_, kRows = kHopperRows, kColumns = hopper_columns(kFeatures);
  static constexpr int kComputing = 2, kThreads = 128 * (1 + kComputing);  // warpgroups; the first one copies
  static constexpr int kWarpgroupRows = kRows / kComputing;
  static constexpr int kPanelFeatures = kFeatures < 64 ? kFeatures : 64, kPanels = kFeatures / kPanelFeatures;
  static constexpr int kRowBytes = 2 * kPanelFeatures, kGroupBytes = 8 * kRowBytes;
  static constexpr Swizzle kSwizzle = kRowBytes == 128 ? Swizzle::k128 : Swizzle::k64;
  static constexpr int kRowPanelBytes = kRows * kRowBytes, kColumnPanelBytes = kColumns * kRowBytes;
  static constexpr int kRowTileBytes = kPanels * kRowPanelBytes, kColumnTileBytes = kPanels * kColumnPanelBytes;
  static constexpr int kStages = kFeatures <= 64 ? 4 : 2;
  // For what this kernel shares with the portable ones: warps have one tile of 16 rows.
  static constexpr int kRowTiles = 1, kThreadRows = 2, kThreadColumns = kColumns / 4;
  static constexpr int kWindowBytes = kRows * 2 * kAxes * static_cast<int>(sizeof(int));
  // Registers per thread: those of 384 threads at 168 are handed from who copies to who computes.
  static constexpr int kCopyRegisters = 40, kComputeRegisters = 232;
  using PanelTile = SharedTile<kRowBytes>;
};

// One of the two rings.
template <class Shape>
struct TileRing {
  uint32_t buffers, barriers;  // shared addresses

  __device__ __forceinline__ uint32_t tile(int step) const {
    return buffers + step % Shape::kStages * Shape::kColumnTileBytes;
  }
  __device__ __forceinline__ uint32_t full(int step) const { return barriers + step % Shape::kStages * 8; }
  __device__ __forceinline__ uint32_t empty(int step) const { return full(step) + Shape::kStages * 8; }

  __device__ __forceinline__ void init_barriers() const {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      mbarrier_init(full(stage), 1);
      mbarrier_init(empty(stage), 4 * Shape::kComputing);
    }
  }
  static __device__ __forceinline__ int parity(int step) { return step / Shape::kStages % 2; }
  __device__ __forceinline__ void wait_full(int step) const { mbarrier_wait(full(step), parity(step)); }
  __device__ __forceinline__ void wait_empty(int step) const { mbarrier_wait(empty(step), parity(step) ^ 1); }
  // By one lane of every warp that computes.
  __device__ __forceinline__ void release(int step) const { mbarrier_arrive(empty(step)); }
};

template <class Shape>
struct HopperShared {
  static constexpr int kQuery = 0, kKey = kQuery + Shape::kRowTileBytes,
                       kValue = kKey + Shape::kStages * Shape::kColumnTileBytes,
                       kWindows = kValue + Shape::kStages * Shape::kColumnTileBytes,
                       kBarriers = kWindows + Shape::kWindowBytes, kRingBarriers = 2 * Shape::kStages * 8,
                       kBytes = kBarriers + 2 * kRingBarriers + 8;
  uint32_t base;

  __device__ __forceinline__ TileRing<Shape> keys() const { return {base + kKey, base + kBarriers}; }
  __device__ __forceinline__ TileRing<Shape> values() const {
    return {base + kValue, base + kBarriers + kRingBarriers};
  }
  __device__ __forceinline__ uint32_t query() const { return base + kQuery; }
  __device__ __forceinline__ uint32_t query_full() const { return base + kBarriers + 2 * kRingBarriers; }

  // By one thread; a block_sync must follow.
  __device__ __forceinline__ void init_barriers() const {
    mbarrier_init(query_full(), 1);
    keys().init_barriers();
    values().init_barriers();
    fence_mbarrier_init();
  }
};

// An array [batch, tokens, heads, features] for tensor copies, seen as what one dilation group and head have of it. The
// axes are the features; x, y and z, of which neighbours are a dilation apart; and the row where the group begins, a
// row being the features of one head of one token. Groups have up to two lengths along an axis: one map for each
// combination, so that positions beyond the group's end read as zero.
struct CopiedOperand {
  TensorMap maps[1 << kAxes];  // bit a: of groups that are longer by one along axis a
  const void* data;
  int heads;
};

// One dilation group and head of an operand.
struct CopiedGroup {
  const TensorMap* map;
  int first[kAxes];  // positions of its first token here
  int row;

  __device__ __forceinline__ CopiedGroup(const CopiedOperand& operand, const Geometry& geometry, const Grid& grid,
                                         const Block& block, int head) {
    int longer = 0;
    int64_t token = block.batch;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      const int dilation = geometry.problem.axis[axis].dilation, group = block.axis[axis].group;
      first[axis] = positions_present(dilation, group, grid.first[axis], grid.count[axis]).start;
      const int coordinate = first[axis] * dilation + group - grid.first[axis];
      if (coordinate < grid.count[axis] % dilation) longer |= 1 << axis;
      token = token * grid.count[axis] + coordinate;
    }
    map = &operand.maps[longer];
    row = static_cast<int>(token * operand.heads + head);
  }
};

// Starts copying a tile of tokens, kTokens rows in each panel, from the positions `start` on.
template <class Shape, int kTokens>
__device__ __forceinline__ void copy_tile(const CopiedGroup& group, const int (&start)[kAxes], uint32_t to,
                                          uint32_t barrier) {
#pragma unroll 1
  for (int panel = 0; panel < Shape::kPanels; ++panel)
    tma_load(to + panel * kTokens * Shape::kRowBytes, group.map, barrier,
             {panel * Shape::kPanelFeatures, start[2] - group.first[2], start[1] - group.first[1],
              start[0] - group.first[0], group.row});
}

// The block's rows, once.
template <class Shape>
__device__ __forceinline__ void copy_query(const Block& block, const CopiedGroup& group,
                                           const HopperShared<Shape>& shared) {
  mbarrier_expect_tx(shared.query_full(), Shape::kRowTileBytes);
  const int start[kAxes] = {block.axis[0].origin, block.axis[1].origin, block.axis[2].origin};
  copy_tile<Shape, Shape::kRows>(group, start, shared.query(), shared.query_full());
}

// All boxes of columns, one after the other, through a ring.
template <class Shape>
__device__ __forceinline__ void copy_columns(const Tiling& tiling, const Block& block, const CopiedGroup& group,
                                             const TileRing<Shape>& ring) {
  Walk walk = make_walk(tiling, block.axis);
  const int total = walk.total();
#pragma unroll 1
  for (int step = 0; step < total; ++step, walk.step()) {
    int start[kAxes];
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) start[axis] = box_start(tiling, block.axis[axis], walk, axis);
    ring.wait_empty(step);
    mbarrier_expect_tx(ring.full(step), Shape::kColumnTileBytes);
    copy_tile<Shape, Shape::kColumns>(group, start, ring.tile(step), ring.full(step));
  }
}

}  // namespace jax_na::cuda
