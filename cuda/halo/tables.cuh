// SPDX-License-Identifier: Apache-2.0
// The tables of a halo kernel: where the keys of the present tile are, and which of them its queries see.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/problem.h"
#include "common/window.h"
#include "cuda/block/block.cuh"
#include "cuda/fused/params.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/halo/config.h"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// kColumns keys of a box are scored at a time, of rows with room for kFeatures.
template <class Math_, int kFeatures_, int kColumns_, bool kHasBias_>
struct HaloShape {
  using Math = Math_;
  using Element = typename Math::Element;
  static constexpr int kFeatures = kFeatures_, kColumns = kColumns_;
  static constexpr bool kIsWhole = is_whole_box(kColumns), kHasBias = kHasBias_;
  static constexpr int kThreads = 32 * kHaloWarps, kHeads = halo_heads(kFeatures);
  static constexpr int kSteps = kFeatures / Math::kDepth, kFeatureTiles = kFeatures / 8, kColumnTiles = kColumns / 8;
  static constexpr int kHeadBytes = kFeatures * static_cast<int>(sizeof(Element)),
                       kRowBytes = halo_row_bytes(kFeatures);
  static constexpr int kChunks = kRowBytes / 16;      // of 16 bytes in a row
  static constexpr int kTokens = kThreads / kChunks;  // that the block copies side by side
  // Blocks that a multiprocessor shall have registers for: several hide each other's copies.
  static constexpr int kMinBlocks = halo_blocks(kFeatures, kColumns);
  using Scores = Fragment<1, kColumnTiles>;
};

struct HaloParams {
  ForwardParams forward;  // rows of the tiling: the block's tile, columns: the tile of a warp
  HaloSizes sizes;
  HaloLayout layout;
  uint32_t units;  // tiles times batch
};

// A key of the halo. One that does not exist is the first that does: no query sees it.
struct alignas(8) HaloToken {
  uint32_t row;    // in [tokens, kv_heads]
  uint32_t place;  // bytes to its first chunk, from the first key of the halo
};

// The first key of a warp's box.
struct HaloBox {
  int place;  // bytes from the first key of the halo
  int key;    // its number if the halo's keys were those of a box
};

// Bits of the keys below `count` among those that a lane has: of every 8, the two from 2 * column on.
__device__ __forceinline__ uint32_t keys_below(int count, int column) {
  const int left = count - 2 * column;
  if (left <= 0) return 0;
  const int bits = left / 8 * 2 + min(left % 8, 2);
  return bits >= 32 ? ~0u : (1u << bits) - 1;
}

// What there is along an axis of a tile: no query, queries with all their keys, queries that lack some.
enum HaloState { kNoQueries, kComplete, kIncomplete };

// Never reached by adding the parts of other axes: a token with such a part does not exist.
constexpr int kNowhere = INT32_MIN / 2;

template <class Shape>
struct HaloTables {
  const HaloParams& p;
  char* shared;

  template <class Word>
  __device__ __forceinline__ Word* at(int offset) const {
    return reinterpret_cast<Word*>(shared + offset);
  }
  __device__ __forceinline__ const Problem& problem() const { return p.forward.geometry.problem; }
  __device__ __forceinline__ const Tiling& tiling() const { return p.forward.geometry.tiling; }

  __device__ __forceinline__ const HaloAxis& sizes(int axis) const { return p.sizes.axis[axis]; }

  // Entries of the tables by position.
  __device__ __forceinline__ int& query_part(int axis, int position) const {
    return at<int>(p.layout.query_parts)[sizes(axis).positions + position];
  }
  __device__ __forceinline__ int& bias_part(int axis, int position) const {
    return at<int>(p.layout.bias_queries)[sizes(axis).positions + position];
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
  __device__ __forceinline__ int state(int axis) const { return at<int>(p.layout.state)[axis]; }
  __device__ __forceinline__ bool has_queries() const {
    return state(0) != kNoQueries && state(1) != kNoQueries && state(2) != kNoQueries;
  }
  __device__ __forceinline__ bool is_complete() const {
    return state(0) == kComplete && state(1) == kComplete && state(2) == kComplete;
  }

  // Row of a query in [tokens, heads], negative if it does not exist.
  __device__ __forceinline__ int query_row(int row) const { return at<int>(p.layout.query_rows)[row]; }
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

  // Chunks are permuted inside their row by the number of the key in a box: eight neighbours in a row of any box have
  // eight different turns, and so the eight rows that ldmatrix reads lie in different banks.
  static __device__ __forceinline__ uint32_t turn_of(int key) { return static_cast<uint32_t>(key % 8) * 16; }

  // What holds for all tiles: where in a halo the keys of a box are, and which of them lie before a plane.
  __device__ __forceinline__ void prepare() const {
    static_assert(kHaloWarps == 4 && sizeof(Problem) <= kHaloSuspectRoom);
    if (threadIdx.x % 32 == 0) has_suspects() = 0;
    const int rows = sizes(1).box, columns = sizes(2).box, plane = rows * columns;
    const int halo_rows = sizes(1).halo, halo_columns = sizes(2).halo, box_tokens = p.sizes.box_tokens;
#pragma unroll 1
    for (int key = threadIdx.x; key < p.sizes.halo_tokens; key += Shape::kThreads) {
      const int z = key / halo_columns / halo_rows, y = key / halo_columns % halo_rows, x = key % halo_columns;
      at<HaloToken>(p.layout.tokens)[key].place = key * Shape::kRowBytes + turn_of(z * plane + y * columns + x);
    }
    const int keys = p.sizes.parts * Shape::kColumns;
#pragma unroll 1
    for (int key = threadIdx.x; key < keys + 8; key += Shape::kThreads) {
      const int z = key / plane, y = key % plane / columns, x = key % columns;
      const int row = (z * halo_rows + y) * halo_columns + x;
      at<int>(p.layout.rows)[key] = key < box_tokens ? row * Shape::kRowBytes : 0;
      if (Shape::kHasBias && key < keys)
        at<int>(p.layout.bias_keys)[key] = z * sizes(0).bias_stride + y * sizes(1).bias_stride + x;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < p.sizes.parts * p.sizes.planes * 4; i += Shape::kThreads) {
      const int column = i % 4, part = i / 4 / p.sizes.planes, first = part * Shape::kColumns;
      int before = i / 4 % p.sizes.planes;
      const int axis = before >= sizes(2).planes ? 2 : before >= sizes(1).planes ? 1 : 0;
      before -= sizes(axis).planes;
      // Keys before a plane are runs of neighbours: one in all, one in each plane, one in each row.
      const int run = axis == 0 ? box_tokens : axis == 1 ? plane : columns;
      const int length = axis == 0 ? before * plane : axis == 1 ? before * columns : before;
      uint32_t bits = 0;
#pragma unroll 1
      for (int start = 0; start < box_tokens; start += run)
        bits |= keys_below(start + length - first, column) & ~keys_below(start - first, column);
      at<uint32_t>(p.layout.below)[i] = bits;
    }
  }

  // Makes the tables of a tile; they are complete after a block_sync.
  __device__ __forceinline__ void open(uint32_t tile) const {
    const int thread = static_cast<int>(renewed(threadIdx.x)), warp = thread / 32;
    if (warp < kAxes) {
      int index = 0;
#pragma unroll
      for (int axis = kAxes - 1; axis >= 0; --axis) {
        const uint32_t tiles = tiling().tiles[axis] * problem().axis[axis].dilation;
        if (axis == warp) index = static_cast<int>(tile % tiles);
        tile /= tiles;
      }
      open_axis(warp, index, thread % 32);
    }
    block_sync();
    find_tokens(thread);
    if constexpr (Shape::kIsWhole) {
      for (int i = thread; i < 4 * kHaloRows; i += Shape::kThreads) {
        int position[kAxes];
        row_position(i / 4, position);
        at<uint32_t>(p.layout.masks)[i] = seen(0, position, i % 4);
      }
    }
    for (int row = thread; row < kHaloRows; row += Shape::kThreads) open_row(row);
  }

 private:
  // The tables of one axis, by one warp. `index`: of the tile along the axis.
  __device__ __forceinline__ void open_axis(int axis, int index, int lane) const {
    bool complete = true;
    const Span queries = read_span<Side::kQueries>(p.forward.geometry, axis, complete);
    const Span keys = read_span<Side::kKeys>(p.forward.geometry, axis, complete);
    const Extent extent = locate<Side::kQueries>(problem(), tiling(), {queries, keys}, axis, index, complete);
    const bool exists = extent.rows.stop > extent.rows.start;
    if (lane == 0) at<int>(p.layout.state)[axis] = exists ? (complete ? kComplete : kIncomplete) : kNoQueries;
    const int dilation = problem().axis[axis].dilation;
#pragma unroll 1
    for (int i = lane; i < sizes(axis).halo; i += 32) {
      const int position = extent.columns.start + i;
      const int coordinate = position * dilation + extent.group - keys.first;
      at<int>(p.layout.key_parts)[sizes(axis).lines + i] =
          exists && position < extent.columns.stop ? coordinate * sizes(axis).key_stride : kNowhere;
    }
#pragma unroll 1
    for (int i = lane; i < 1 << tiling().rows[axis]; i += 32) {
      const int position = extent.origin + i;
      const int coordinate = position * dilation + extent.group - queries.first;
      query_part(axis, i) = exists && position < extent.rows.stop ? coordinate * sizes(axis).query_stride : kNowhere;
      open_position(axis, extent, i);
    }
  }

  // Where the box of a position begins, and what the position sees of it.
  __device__ __forceinline__ void open_position(int axis, const Extent& extent, int i) const {
    const Axis& grid = problem().axis[axis];
    const int position = extent.origin + i, leader = i >> tiling().columns[axis] << tiling().columns[axis];
    const int length = sizes(axis).box;
    // The first key that the first row of the warp's tile sees.
    const int first = seen_in_halo(grid, extent, extent.origin + leader).start;
    const int start = max(0, min(first, sizes(axis).halo - length));
    box(axis, i) = start;
    if (Shape::kHasBias)
      bias_part(axis, i) = (extent.columns.start + start - position + grid.kernel_size - 1) * sizes(axis).bias_stride;
    const Range window = seen_in_halo(grid, extent, position);
    const int from = max(0, min(window.start - start, length)), to = max(0, min(window.stop - start, length));
#pragma unroll 1
    for (int part = 0; part < p.sizes.parts; ++part) {
      const auto* below = at<uint32_t>(p.layout.below) + 4 * (part * p.sizes.planes + sizes(axis).planes);
      for (int column = 0; column < 4; ++column)
        seen(part, axis, i, column) = below[4 * to + column] & ~below[4 * from + column];
    }
  }

  // What is known of a query when all axes are.
  __device__ __forceinline__ void open_row(int row) const {
    int position[kAxes];
    row_position(row, position);
    const int z = query_part(0, position[0]), y = query_part(1, position[1]), x = query_part(2, position[2]);
    at<int>(p.layout.query_rows)[row] = min(z, min(y, x)) < 0 ? -1 : z + y + x;
    if constexpr (Shape::kHasBias)
      at<int>(p.layout.bias_rows)[row] =
          bias_part(0, position[0]) + bias_part(1, position[1]) + bias_part(2, position[2]);
    if (row % 16 != 0) return;
    HaloBox first{};
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      const int start = box(axis, position[axis]);
      first.place = first.place * sizes(axis).halo + start;
      first.key = first.key * sizes(axis).box + start;
    }
    first.place *= Shape::kRowBytes;
    at<HaloBox>(p.layout.warps)[row / 16] = first;
  }

  // What a position sees, counted from the first key of the halo; one without a query sees nothing.
  static __device__ __forceinline__ Range seen_in_halo(const Axis& axis, const Extent& extent, int position) {
    if (position >= extent.rows.stop) return {0, 0};
    const Range range = window(axis, extent.length, position);
    const int first = extent.columns.start;
    return {max(range.start, extent.present.start) - first, min(range.stop, extent.present.stop) - first};
  }

  // Where the keys of the halo are.
  __device__ __forceinline__ void find_tokens(int thread) const {
    const int* parts = at<int>(p.layout.key_parts);
    const int rows = sizes(1).halo, columns = sizes(2).halo;
    for (int key = thread; key < p.sizes.halo_tokens; key += Shape::kThreads) {
      const int line = key / columns;
      const int z = parts[line / rows], y = parts[sizes(1).lines + line % rows];
      const int x = parts[sizes(2).lines + key % columns];
      at<HaloToken>(p.layout.tokens)[key].row = min(z, min(y, x)) < 0 ? 0 : z + y + x;
    }
  }
};

}  // namespace jax_na::cuda
