// SPDX-License-Identifier: Apache-2.0
// The row kernels: for small windows, where the tiles of tile.h would mostly compute pairs outside every window.
//
// The lanes are kWidth neighbouring queries of one row (the last axis), and a block is up to kBlockRows such rows. Key
// rows are packed transposed, [dim][columns], so that the products of all lanes with "the key c places further" are
// one shifted load: no pair outside a window is computed along the first two axes, and few along the last. The products
// with values have features in the lanes and take exactly the pairs in the windows, two outputs at a time.
// row_grid.h cuts a call into units and blocks, row_ring.h packs keys, row_scores.h and row_sums.h are the products.
#pragma once

#include "cpu/tiles/scores.h"

namespace jax_na {

constexpr int kBlockRows = 4;  // query rows of a block, at most

inline namespace JAX_NA_ISA {

// Neighbouring queries of a row, and the columns of scores that they need for every key row. Column c of lane l is the
// key first + l + low + c (shifted), or the key low + c (for windows that hardly move, as between nearby borders).
struct LaneTile {
  int first, count;  // position of the first lane; lanes that exist
  int low, columns;
  int margin;  // columns of zero weights before and after: neighbours' windows as columns of one another
  int pitch;   // floats of one key row of scores, margins included
  bool shifted;
  bool full;  // every column is inside the window of every lane (and, with a bias, no lane is missing)
  alignas(64) int32_t start[kWidth], stop[kWidth];  // the window of each lane, in columns
};

inline LaneTile make_lane_tile(const Axis& axis, const Group& group, int first, int stop, bool biased) {
  LaneTile tile{};
  tile.first = first;
  tile.count = min(kWidth, stop - first);
  int low = INT32_MAX, high = INT32_MIN;
  for (int l = 0; l < tile.count; ++l) {
    const Range r = window(axis, group.length, first + l);
    tile.start[l] = r.start;
    tile.stop[l] = r.stop;
    low = min(low, r.start - first - l);
    high = max(high, r.stop - first - l);
  }
  const int keys = tile.stop[tile.count - 1] - tile.start[0];
  tile.shifted = biased || high - low < keys;
  tile.low = tile.shifted ? low : tile.start[0];
  tile.columns = tile.shifted ? high - low : keys;
  tile.full = !biased || tile.count == kWidth;
  tile.margin = tile.shifted ? 1 : 0;
  for (int l = 0; l < tile.count; ++l) {
    const int origin = tile.low + (tile.shifted ? first + l : 0);
    if (tile.shifted && l > 0)  // a column of this lane is the next one of the lane before
      tile.margin = max(tile.margin, max(origin - tile.start[l - 1], tile.stop[l] - (origin - 1) - tile.columns));
    tile.full &= tile.start[l] == origin && tile.stop[l] == origin + tile.columns;
  }
  for (int l = 0; l < tile.count; ++l) {
    const int origin = tile.low + (tile.shifted ? first + l : 0);
    tile.start[l] -= origin;
    tile.stop[l] -= origin;
  }
  tile.pitch = (tile.columns + 2 * tile.margin) * kWidth;
  return tile;
}

inline IntVec in_window(const LaneTile& tile, int column) {
  return (splat(column) >= load(tile.start)) & (splat(column) < load(tile.stop));
}

// Neighbours' windows reach into the margins, where weights are zero.
inline void clear_margins(const LaneTile& tile, int key_rows, float* scores) {
  for (int row = 0; row < key_rows; ++row, scores += tile.pitch)
    for (int i = 0; i < tile.margin; ++i) {
      store(scores + i * kWidth, Vec{});
      store(scores + tile.pitch - (i + 1) * kWidth, Vec{});
    }
}

// One query row of a block: its windows along the first two axes.
struct QueryRow {
  int z, y;
  Range keys[2];
};
inline int key_rows(const QueryRow& row) { return extent(row.keys[0]) * extent(row.keys[1]); }

// Queries of a unit, along every axis in positions of its group.
struct RowUnit {
  Tile tile;  // batch, head and group
  Range queries[kAxes];
};

// The query rows of one block.
struct Block {
  int count;
  QueryRow row[kBlockRows];
  Range keys[2];  // union
};

inline Block make_block(const Problem& p, const RowUnit& unit, int first_y) {
  Block block{};
  const int stop_y = min(first_y + p.tile[1], unit.queries[1].stop);
  for (int z = unit.queries[0].start; z < unit.queries[0].stop; ++z)
    for (int y = first_y; y < stop_y; ++y)
      block.row[block.count++] = {
          z, y, {window(p.axis[0], unit.tile.group[0].length, z), window(p.axis[1], unit.tile.group[1].length, y)}};
  for (int a = 0; a < 2; ++a) block.keys[a] = {block.row[0].keys[a].start, block.row[block.count - 1].keys[a].stop};
  return block;
}

inline int key_rows(const Block& block) {
  int rows = 0;
  for (int r = 0; r < block.count; ++r) rows += key_rows(block.row[r]);
  return rows;
}

// Index of a key row among those of a query row, -1 when it is outside.
inline int key_row_index(const QueryRow& row, int z, int y) {
  if (!inside(z, row.keys[0]) || !inside(y, row.keys[1])) return -1;
  return (z - row.keys[0].start) * extent(row.keys[1]) + y - row.keys[1].start;
}

// What of a block's scores belongs to one key row: the query rows that see it.
struct SeenBy {
  int count;
  int row[kBlockRows];
  ptrdiff_t at[kBlockRows];  // of the key row among the scores of the block
};

inline SeenBy seen_by(const Block& block, const LaneTile& tile, int z, int y) {
  SeenBy seen;
  seen.count = 0;
  ptrdiff_t at = 0;
  for (int r = 0; r < block.count; ++r) {
    const int index = key_row_index(block.row[r], z, y);
    if (index >= 0) {
      seen.row[seen.count] = r;
      seen.at[seen.count++] = at + ptrdiff_t{index} * tile.pitch;
    }
    at += ptrdiff_t{key_rows(block.row[r])} * tile.pitch;
  }
  return seen;
}

// Calls body(z, y, query rows that see it) for every key row of a block.
template <class Body>
inline void for_each_key_row(const Block& block, const LaneTile& tile, const Body& body) {
  for (int z = block.keys[0].start; z < block.keys[0].stop; ++z)
    for (int y = block.keys[1].start; y < block.keys[1].stop; ++y) body(z, y, seen_by(block, tile, z, y));
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
