// SPDX-License-Identifier: Apache-2.0
// Makes the tables of a halo kernel (halo/tables.cuh): once, what holds for all tiles, then those of each tile.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "common/window.h"
#include "cuda/block/block.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/halo/config.h"
#include "cuda/halo/tables.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Bits of the columns below `count` among those that a lane has: of every 8, the two from 2 * column on.
__device__ __forceinline__ uint32_t keys_below(int count, int column) {
  const int left = count - 2 * column;
  if (left <= 0) return 0;
  const int bits = left / 8 * 2 + min(left % 8, 2);
  return bits >= 32 ? ~0u : (1u << bits) - 1;
}

template <class Shape>
struct HaloMaker : HaloTables<Shape> {
  using Base = HaloTables<Shape>;
  using Base::p, Base::problem, Base::geometry, Base::tiling, Base::sizes, Base::extents, Base::halo_length,
      Base::box_length, Base::halo_tokens, Base::box_tokens, Base::parts, Base::row_part, Base::bias_part, Base::box,
      Base::seen, Base::row_position, Base::kRowSide, Base::kOfQueries;

  template <class Word>
  __device__ __forceinline__ Word* at(int offset) const {
    return Base::template at<Word>(offset);
  }

  // By all threads, before the first tile.
  __device__ __forceinline__ void prepare() const {
    static_assert(kHaloWarps == 4 && sizeof(Problem) <= kHaloSuspectRoom);
    if (threadIdx.x % 32 == 0) this->has_suspects() = 0;
    if constexpr (kOfQueries) {
      make_boxes();
    } else if (threadIdx.x < kAxes) {
      extents().halo[threadIdx.x] = 0;
    }
  }

  // Makes the tables of a tile, unless they are there; `opened`: the tile that has them, at first none.
  __device__ __forceinline__ void open(uint32_t tile, uint32_t& opened) const {
    if (tile == opened) return;
    block_sync();  // what prepare() made is there, and nobody reads the tables of the tile before
    make_tables(tile);
    block_sync();
    opened = tile;
  }

 private:
  // The tables are complete after a block_sync.
  __device__ __forceinline__ void make_tables(uint32_t tile) const {
    const int thread = static_cast<int>(renewed(threadIdx.x)), warp = thread / 32;
    if constexpr (!kOfQueries) {
      if (warp < kAxes) measure_axis(warp, index_of(tile, warp), thread % 32);
      block_sync();
      if (extents().is_new[0] | extents().is_new[1] | extents().is_new[2]) make_boxes();
      block_sync();
    }
    if (warp < kAxes) open_axis(warp, index_of(tile, warp), thread % 32);
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

  // What depends on the extents alone: where in a halo the columns of a box are, and which of them lie before a plane.
  __device__ __forceinline__ void make_boxes() const {
    const int rows = box_length(1), columns = box_length(2), plane = rows * columns;
    const int halo_rows = halo_length(1), halo_columns = halo_length(2), columns_of_box = box_tokens();
#pragma unroll 1
    for (int i = threadIdx.x; i < halo_tokens(); i += Shape::kThreads) {
      const int z = i / halo_columns / halo_rows, y = i / halo_columns % halo_rows, x = i % halo_columns;
      at<HaloToken>(p.layout.tokens)[i].place = i * Shape::kRowBytes + Base::turn_of(z * plane + y * columns + x);
    }
    const int scored = parts() * Shape::kColumns;
#pragma unroll 1
    for (int i = threadIdx.x; i < scored + 8; i += Shape::kThreads) {
      const int z = i / plane, y = i % plane / columns, x = i % columns;
      const int place = (z * halo_rows + y) * halo_columns + x;
      at<int>(p.layout.columns)[i] = i < columns_of_box ? place * Shape::kRowBytes : 0;
      if (!Shape::kHasBias || i >= scored) continue;
      const int entry = z * sizes(0).bias_stride + y * sizes(1).bias_stride + x;
      at<int>(p.layout.bias_columns)[i] = kOfQueries ? entry : -entry;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < parts() * p.sizes.planes * 4; i += Shape::kThreads) {
      const int column = i % 4, part = i / 4 / p.sizes.planes, first = part * Shape::kColumns;
      int before = i / 4 % p.sizes.planes;
      const int axis = before >= sizes(2).planes ? 2 : before >= sizes(1).planes ? 1 : 0;
      before -= sizes(axis).planes;
      // Columns before a plane are runs of neighbours: one in all, one in each plane, one in each row.
      const int run = axis == 0 ? columns_of_box : axis == 1 ? plane : columns;
      const int length = axis == 0 ? before * plane : axis == 1 ? before * columns : before;
      uint32_t bits = 0;
#pragma unroll 1
      for (int start = 0; start < columns_of_box; start += run)
        bits |= keys_below(start + length - first, column) & ~keys_below(start - first, column);
      constexpr uint32_t kOwn = Shape::kColumns >= 128 ? ~0u : (1u << Shape::kColumns / 4) - 1;  // not of later parts
      at<uint32_t>(p.layout.below)[i] = bits & kOwn;
    }
  }

  // Index of a tile along an axis.
  __device__ __forceinline__ int index_of(uint32_t tile, int along) const {
    int index = 0;
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      const uint32_t tiles = tiling().tiles[axis] * problem().axis[axis].dilation;
      if (axis == along) index = static_cast<int>(tile % tiles);
      tile /= tiles;
    }
    return index;
  }

  // What is present along an axis.
  __device__ __forceinline__ Spans read_spans(int axis, bool& complete) const {
    return {read_span<kRowSide>(geometry(), axis, complete),
            read_span<kOfQueries ? Side::kKeys : Side::kQueries>(geometry(), axis, complete)};
  }

  // The extents of a tile along an axis, where it has that `index`.
  __device__ __forceinline__ void measure_axis(int axis, int index, int lane) const {
    bool complete = true;
    const Spans spans = read_spans(axis, complete);
    const Extent extent = locate<kRowSide>(problem(), tiling(), spans, axis, index, complete);
    const int rows = 1 << tiling().columns[axis];  // of a warp
    int box = 1;
#pragma unroll 1
    for (int row = extent.rows.start; row < extent.rows.stop; row += rows) {
      const int last = min(row + rows, extent.rows.stop) - 1;
      const Axis& grid = problem().axis[axis];
      box = max(box, seen_in_halo(grid, extent, last).stop - seen_in_halo(grid, extent, row).start);
    }
    if (lane != 0) return;
    HaloExtents& found = extents();
    const int halo = max(1, extent.columns.stop - extent.columns.start);
    found.is_new[axis] = found.halo[axis] != halo || found.box[axis] != box;
    found.halo[axis] = halo;
    found.box[axis] = box;
  }

  // The tables of an axis, by one warp.
  __device__ __forceinline__ void open_axis(int axis, int index, int lane) const {
    bool complete = true;
    const Spans spans = read_spans(axis, complete);
    const Extent extent = locate<kRowSide>(problem(), tiling(), spans, axis, index, complete);
    const bool exists = extent.rows.stop > extent.rows.start;
    if (lane == 0) at<int>(p.layout.state)[axis] = exists ? (complete ? kComplete : kIncomplete) : kNoRows;
    const int dilation = problem().axis[axis].dilation;
#pragma unroll 1
    for (int i = lane; i < halo_length(axis); i += 32) {
      const int position = extent.columns.start + i;
      const int coordinate = position * dilation + extent.group - spans.columns.first;
      at<int>(p.layout.column_parts)[sizes(axis).lines + i] =
          exists && position < extent.columns.stop ? coordinate * sizes(axis).column_stride : kNowhere;
    }
#pragma unroll 1
    for (int i = lane; i < 1 << tiling().rows[axis]; i += 32) {
      const int position = extent.origin + i;
      const int coordinate = position * dilation + extent.group - spans.rows.first;
      row_part(axis, i) = exists && position < extent.rows.stop ? coordinate * sizes(axis).row_stride : kNowhere;
      open_position(axis, extent, i);
    }
  }

  // Where the box of a position begins, and what the position sees of it.
  __device__ __forceinline__ void open_position(int axis, const Extent& extent, int i) const {
    const Axis& grid = problem().axis[axis];
    const int position = extent.origin + i, leader = i >> tiling().columns[axis] << tiling().columns[axis];
    const int length = box_length(axis);
    // The first column that the first row of the warp's tile sees.
    const int first = seen_in_halo(grid, extent, extent.origin + leader).start;
    const int start = max(0, min(first, halo_length(axis) - length));
    box(axis, i) = start;
    if (Shape::kHasBias) {
      const int difference = extent.columns.start + start - position;  // of the first column and the row
      bias_part(axis, i) = ((kOfQueries ? difference : -difference) + grid.kernel_size - 1) * sizes(axis).bias_stride;
    }
    const Range window = seen_in_halo(grid, extent, position);
    const int from = max(0, min(window.start - start, length)), to = max(0, min(window.stop - start, length));
#pragma unroll 1
    for (int part = 0; part < parts(); ++part) {
      const auto* below = at<uint32_t>(p.layout.below) + 4 * (part * p.sizes.planes + sizes(axis).planes);
      for (int column = 0; column < 4; ++column)
        seen(part, axis, i, column) = below[4 * to + column] & ~below[4 * from + column];
    }
  }

  // What is known of a row when all axes are.
  __device__ __forceinline__ void open_row(int row) const {
    int position[kAxes];
    row_position(row, position);
    const int z = row_part(0, position[0]), y = row_part(1, position[1]), x = row_part(2, position[2]);
    at<int>(p.layout.rows)[row] = min(z, min(y, x)) < 0 ? -1 : z + y + x;
    if constexpr (Shape::kHasBias)
      at<int>(p.layout.bias_rows)[row] =
          bias_part(0, position[0]) + bias_part(1, position[1]) + bias_part(2, position[2]);
    if (row % 16 != 0) return;
    HaloBox first{};
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      const int start = box(axis, position[axis]);
      first.place = first.place * halo_length(axis) + start;
      first.number = first.number * box_length(axis) + start;
    }
    first.place *= Shape::kRowBytes;
    at<HaloBox>(p.layout.warps)[row / 16] = first;
  }

  // What a position sees, counted from the first column of the halo; one without a row sees nothing.
  static __device__ __forceinline__ Range seen_in_halo(const Axis& axis, const Extent& extent, int position) {
    if (position >= extent.rows.stop) return {0, 0};
    const Range range = seen_from<kRowSide>(axis, extent.length, position);
    const int first = extent.columns.start;
    return {max(range.start, extent.present.start) - first, min(range.stop, extent.present.stop) - first};
  }

  // Where the columns of the halo are.
  __device__ __forceinline__ void find_tokens(int thread) const {
    const int* parts = at<int>(p.layout.column_parts);
    const int rows = halo_length(1), columns = halo_length(2), stop = halo_tokens();
    for (int i = thread; i < stop; i += Shape::kThreads) {
      const int line = i / columns;
      const int z = parts[line / rows], y = parts[sizes(1).lines + line % rows];
      const int x = parts[sizes(2).lines + i % columns];
      at<HaloToken>(p.layout.tokens)[i].row = min(z, min(y, x)) < 0 ? 0 : z + y + x;
    }
  }
};

}  // namespace jax_na::cuda
