// SPDX-License-Identifier: Apache-2.0
// The tokens of a block. A block has a tile of rows that stay (queries, or keys in the backward pass of keys and
// values) and walks over tiles of columns (the other side): the boxes that cover all tokens which its rows see. The
// first box starts at the first of these tokens, wherever that is, so no box lies outside every window.
//
// Everything is in positions of dilation groups; tiles are boxes whose extents are powers of two. Compiles for the host
// too, where its properties are tested.
#pragma once

#include "common/problem.h"

namespace jax_na::cuda {

struct Tiling {
  int rows[kAxes];     // log2 of the extents of a tile of rows
  int columns[kAxes];  // log2 of the extents of a tile of columns
  int tiles[kAxes];    // tiles of rows of one dilation group, at most
};

// The query side and the key side of a problem, by role.
enum class Rows { kQueries, kKeys };

struct Side {  // coordinates [first, first + count) of an axis are present
  int first, count;
};

JAX_NA_HD constexpr int log2_of(int power_of_two) {
  int result = 0;
  while (power_of_two >> (result + 1)) ++result;
  return result;
}

template <Rows rows>
JAX_NA_HD constexpr Tiling make_tiling(const Problem& p, const int (&row_tile)[kAxes],
                                       const int (&column_tile)[kAxes]) {
  Tiling t{};
  for (int a = 0; a < kAxes; ++a) {
    const int count = rows == Rows::kQueries ? p.nq[a] : p.nk[a];
    t.rows[a] = log2_of(row_tile[a]);
    t.columns[a] = log2_of(column_tile[a]);
    t.tiles[a] = ceil_div(ceil_div(count, p.axis[a].dilation), row_tile[a]);
  }
  return t;
}

// Number of row tiles of one head.
JAX_NA_HD constexpr int64_t tile_count(const Problem& p, const Tiling& t) {
  int64_t count = 1;
  for (int a = 0; a < kAxes; ++a) count *= int64_t{t.tiles[a]} * p.axis[a].dilation;
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
template <Rows rows>
JAX_NA_HD constexpr Range seen_from(const Axis& axis, int length, int position) {
  return rows == Rows::kQueries ? window(axis, length, position) : inverse_window(axis, length, position);
}

// Axis `a` of row tile `index`. `complete` turns false when a query's window reaches beyond the keys present.
template <Rows rows>
JAX_NA_HD constexpr Extent locate(const Problem& p, const Tiling& t, Side row, Side column, int a, int index,
                                  bool& complete) {
  const Axis& axis = p.axis[a];
  Extent e{};
  e.group = axis.dilation == 1 ? 0 : index / t.tiles[a];
  e.length = group_length(axis, e.group);
  const Range here = positions_present(axis.dilation, e.group, row.first, row.count);
  e.origin = here.start + ((index - e.group * t.tiles[a]) << t.rows[a]);
  e.rows = {e.origin, min(e.origin + (1 << t.rows[a]), min(here.stop, e.length))};
  e.present = positions_present(axis.dilation, e.group, column.first, column.count);
  e.present.stop = min(e.present.stop, e.length);
  if (e.rows.start >= e.rows.stop || e.rows.start < 0) return {e.group, e.length, e.origin, {0, 0}, e.present, {0, 0}};
  const Range seen = {seen_from<rows>(axis, e.length, e.rows.start).start,
                      seen_from<rows>(axis, e.length, e.rows.stop - 1).stop};
  e.columns = {max(seen.start, e.present.start), min(seen.stop, e.present.stop)};
  if (rows == Rows::kQueries) complete = complete && seen.start >= e.present.start && seen.stop <= e.present.stop;
  return e;
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

JAX_NA_HD constexpr Walk make_walk(const Tiling& t, const Extent (&e)[kAxes]) {
  Walk w{};
  for (int a = 0; a < kAxes; ++a)
    w.count[a] = max(0, e[a].columns.stop - e[a].columns.start + (1 << t.columns[a]) - 1) >> t.columns[a];
  return w;
}

// Position of the first column of the present box.
JAX_NA_HD constexpr int box_start(const Tiling& t, const Extent& e, const Walk& w, int a) {
  return e.columns.start + (w.at[a] << t.columns[a]);
}

// Distances in the bias table of a head, [2 w - 1, ...], between neighbours along each axis.
struct Strides {
  int of[kAxes];
};
JAX_NA_HD constexpr Strides bias_strides(const Problem& p) {
  const int x = 2 * p.axis[2].kernel_size - 1, y = 2 * p.axis[1].kernel_size - 1;
  return {{y * x, x, 1}};
}

// Coordinate of token `i` of a box inside the box: z, y, x with extents 2^log2.
JAX_NA_HD constexpr int inside_box(const int (&log2)[kAxes], int i, int a) {
  if (a == 2) return i & ((1 << log2[2]) - 1);
  if (a == 1) return i >> log2[2] & ((1 << log2[1]) - 1);
  return i >> (log2[1] + log2[2]);
}

}  // namespace jax_na::cuda
