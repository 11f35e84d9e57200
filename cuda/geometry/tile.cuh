// SPDX-License-Identifier: Apache-2.0
// The tokens of a block. A block has a tile of rows that stay (queries, or keys in the backward pass of keys and
// values) and walks over tiles of columns (the other side): the boxes that cover all tokens which its rows see. The
// first box starts at the first of these tokens, wherever that is, so no box lies outside every window.
//
// Everything is in positions of dilation groups; tiles are boxes whose extents are powers of two. Compiles for the host
// too, where its properties are tested.
#pragma once

#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"

namespace jax_na::cuda {

struct Tiling {
  int rows[kAxes];     // log2 of the extents of a tile of rows
  int columns[kAxes];  // log2 of the extents of a tile of columns
  int tiles[kAxes];    // tiles of rows of one dilation group, at most
};

// The two sides of a problem: which of them a block's rows are, the other one then are its columns.
enum class Side { kQueries, kKeys };

struct Span {  // coordinates [first, first + count) of an axis are present
  int first, count;
};

// What is present along an axis, by the role in a block.
struct Spans {
  Span rows, columns;
};

JAX_NA_HD constexpr int log2_of(int power_of_two) {
  int result = 0;
  while (power_of_two >> (result + 1)) ++result;
  return result;
}

template <Side kRowSide>
JAX_NA_HD constexpr Tiling make_tiling(const Problem& problem, const int (&row_tile)[kAxes],
                                       const int (&column_tile)[kAxes]) {
  Tiling tiling{};
  for (int axis = 0; axis < kAxes; ++axis) {
    const int count = kRowSide == Side::kQueries ? problem.nq[axis] : problem.nk[axis];
    tiling.rows[axis] = log2_of(row_tile[axis]);
    tiling.columns[axis] = log2_of(column_tile[axis]);
    tiling.tiles[axis] = ceil_div(ceil_div(count, problem.axis[axis].dilation), row_tile[axis]);
  }
  return tiling;
}

// Number of row tiles of one head.
JAX_NA_HD constexpr int64_t tile_count(const Problem& problem, const Tiling& tiling) {
  int64_t count = 1;
  for (int axis = 0; axis < kAxes; ++axis) count *= int64_t{tiling.tiles[axis]} * problem.axis[axis].dilation;
  return count;
}

// One axis of a block.
struct Extent {
  int group, length;  // dilation group, and its length in the whole grid
  int origin;         // position of the first row
  Range rows;         // rows that exist; the rest of the tile does not
  Range present;      // columns that exist
  Range columns;      // columns that some row sees, cut to those that exist
};

// What row `position` sees along an axis.
template <Side kRowSide>
JAX_NA_HD constexpr Range seen_from(const Axis& axis, int length, int position) {
  return kRowSide == Side::kQueries ? window(axis, length, position) : inverse_window(axis, length, position);
}

// Axis `number` of row tile `index`. `complete` turns false when a query's window reaches beyond the keys present.
template <Side kRowSide>
JAX_NA_HD constexpr Extent locate(const Problem& problem, const Tiling& tiling, const Spans& spans, int number,
                                  int index, bool& complete) {
  const Axis& axis = problem.axis[number];
  Extent extent{};
  extent.group = axis.dilation == 1 ? 0 : index / tiling.tiles[number];
  extent.length = group_length(axis, extent.group);
  const Range here = positions_present(axis.dilation, extent.group, spans.rows.first, spans.rows.count);
  extent.origin = here.start + ((index - extent.group * tiling.tiles[number]) << tiling.rows[number]);
  extent.rows = {extent.origin, min(extent.origin + (1 << tiling.rows[number]), min(here.stop, extent.length))};
  extent.present = positions_present(axis.dilation, extent.group, spans.columns.first, spans.columns.count);
  extent.present.stop = min(extent.present.stop, extent.length);
  if (extent.rows.start >= extent.rows.stop || extent.rows.start < 0)
    return {extent.group, extent.length, extent.origin, {0, 0}, extent.present, {0, 0}};
  // Both ends of what a row sees grow with its position, so the first and the last row see all.
  const Range seen = {seen_from<kRowSide>(axis, extent.length, extent.rows.start).start,
                      seen_from<kRowSide>(axis, extent.length, extent.rows.stop - 1).stop};
  extent.columns = {max(seen.start, extent.present.start), min(seen.stop, extent.present.stop)};
  if (kRowSide == Side::kQueries)
    complete = complete && seen.start >= extent.present.start && seen.stop <= extent.present.stop;
  return extent;
}

// The columns of a block, box by box.
struct Walk {
  int count[kAxes];  // boxes
  int at[kAxes];     // the present one

  JAX_NA_HD constexpr int total() const { return count[0] * count[1] * count[2]; }
  JAX_NA_HD constexpr void step() {
    if (++at[2] < count[2]) return;
    at[2] = 0;
    if (++at[1] < count[1]) return;
    at[1] = 0;
    ++at[0];
  }
};

JAX_NA_HD constexpr Walk make_walk(const Tiling& tiling, const Extent (&extent)[kAxes]) {
  Walk walk{};
  for (int axis = 0; axis < kAxes; ++axis) {
    const Range& columns = extent[axis].columns;
    walk.count[axis] = max(0, columns.stop - columns.start + (1 << tiling.columns[axis]) - 1) >> tiling.columns[axis];
  }
  return walk;
}

// Position of the first column of the present box.
JAX_NA_HD constexpr int box_start(const Tiling& tiling, const Extent& extent, const Walk& walk, int axis) {
  return extent.columns.start + (walk.at[axis] << tiling.columns[axis]);
}

// Distances in the bias table of a head, [2 w - 1, ...], between neighbours along each axis.
struct Strides {
  int of[kAxes];
};
JAX_NA_HD constexpr Strides bias_strides(const Problem& problem) {
  const int row = 2 * problem.axis[2].kernel_size - 1, plane = row * (2 * problem.axis[1].kernel_size - 1);
  return {{plane, row, 1}};
}

// Coordinate along an axis of token `index` of a box: z, y, x with extents 2^log2, x counted fastest.
JAX_NA_HD constexpr int inside_box(const int (&log2)[kAxes], int index, int axis) {
  if (axis == 2) return index & ((1 << log2[2]) - 1);
  if (axis == 1) return index >> log2[2] & ((1 << log2[1]) - 1);
  return index >> (log2[1] + log2[2]);
}

}  // namespace jax_na::cuda
