// SPDX-License-Identifier: Apache-2.0
// The row kernels: for small windows, where the tiles of tile.h would mostly compute pairs outside every window.
//
// The lanes are kWidth neighbouring queries of one row (the last axis), and a block is up to kBlockRows such rows. Key
// rows are packed transposed, [dim][columns], so that the products of all lanes with "the key c places further" are
// one shifted load: no pair outside a window is computed along the first two axes, and few along the last. The products
// with values have features in the lanes and take exactly the pairs in the windows, two outputs at a time.
// grid.h cuts a call into units and blocks, ring.h packs keys, scores.h and sums.h are the products.
//
// The scores of a block lie one query row after the other, each with the key rows of its own window:
//   [query row][key row][margin + columns + margin][kWidth]
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/panel.h"
#include "cpu/tiles/tile.h"

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

// Position of the key that is column 0 of a lane.
inline int lane_origin(const LaneTile& tile, int lane) { return tile.low + (tile.shifted ? tile.first + lane : 0); }

// Windows of the lanes from positions to columns, and what follows from where they lie.
inline void place_windows(LaneTile& tile) {
  for (int lane = 0; lane < tile.count; ++lane) {
    const int origin = lane_origin(tile, lane);
    if (tile.shifted && lane > 0) {  // a column of this lane is the next one of the lane before
      const int before = origin - tile.start[lane - 1], after = tile.stop[lane - 1] - (origin - 1) - tile.columns;
      tile.margin = max(tile.margin, max(before, after));
    }
    // Then no column needs a mask: every window is all columns.
    tile.full &= tile.start[lane] == origin && tile.stop[lane] == origin + tile.columns;
  }
  for (int lane = 0; lane < tile.count; ++lane) {
    const int origin = lane_origin(tile, lane);
    tile.start[lane] -= origin;
    tile.stop[lane] -= origin;
  }
}

inline LaneTile make_lane_tile(const Axis& axis, const Group& group, int first, int stop, bool biased) {
  LaneTile tile{};
  tile.first = first;
  tile.count = min(kWidth, stop - first);
  int low = INT32_MAX, high = INT32_MIN;  // hull of the windows, each counted from its query
  for (int lane = 0; lane < tile.count; ++lane) {
    const Range keys = window(axis, group.length, first + lane);
    tile.start[lane] = keys.start;
    tile.stop[lane] = keys.stop;
    low = min(low, keys.start - first - lane);
    high = max(high, keys.stop - first - lane);
  }
  const int keys = tile.stop[tile.count - 1] - tile.start[0];
  tile.shifted = biased || high - low < keys;  // a bias depends on the distance, which only shifted columns share
  tile.low = tile.shifted ? low : tile.start[0];
  tile.columns = tile.shifted ? high - low : keys;
  tile.full = !biased || tile.count == kWidth;
  tile.margin = tile.shifted ? 1 : 0;
  place_windows(tile);
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

// Floats of the scores of a query row.
inline ptrdiff_t score_floats(const QueryRow& row, const LaneTile& tile) {
  return ptrdiff_t{key_rows(row)} * tile.pitch;
}

// Queries of a unit, along every axis in positions of its group.
struct RowUnit {
  Tile tile;  // batch, head and group
  Range queries[kAxes];
};

// The query rows of one block.
struct RowBlock {
  int count;
  QueryRow row[kBlockRows];
  Range keys[2];  // union
};

inline RowBlock make_block(const Problem& problem, const RowUnit& unit, int first_y) {
  RowBlock block{};
  const Group(&group)[kAxes] = unit.tile.group;
  const int stop_y = min(first_y + problem.tile[1], unit.queries[1].stop);
  for (int z = unit.queries[0].start; z < unit.queries[0].stop; ++z)
    for (int y = first_y; y < stop_y; ++y) {
      QueryRow& row = block.row[block.count];
      row.z = z;
      row.y = y;
      row.keys[0] = window(problem.axis[0], group[0].length, z);
      row.keys[1] = window(problem.axis[1], group[1].length, y);
      ++block.count;
    }
  for (int axis = 0; axis < 2; ++axis)
    block.keys[axis] = {block.row[0].keys[axis].start, block.row[block.count - 1].keys[axis].stop};
  return block;
}

inline int key_rows(const RowBlock& block) {
  int rows = 0;
  for (int i = 0; i < block.count; ++i) rows += key_rows(block.row[i]);
  return rows;
}

// One lane tile of a block, of the query head unit.tile.head: what the kernels compute at once.
struct BlockLanes {
  const Problem& problem;
  const RowUnit& unit;
  const RowBlock& block;
  const LaneTile& tile;
};

// Index among the queries present of the first lane of a query row.
inline int64_t first_query(const BlockLanes& lanes, const QueryRow& row) {
  return query_token(lanes.problem, lanes.unit.tile, {row.z, row.y, lanes.tile.first});
}

// Packed queries of a block are [row][dim][kWidth] or [row][lane][dim], of `dim` padded to whole registers.
template <class Packed>
inline Packed* block_row(Packed* base, int row, int dim) {
  return base + int64_t{row} * padded(dim) * kWidth;
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

inline SeenBy seen_by(const RowBlock& block, const LaneTile& tile, int z, int y) {
  SeenBy seen;
  seen.count = 0;
  ptrdiff_t at = 0;
  for (int i = 0; i < block.count; ++i) {
    const int index = key_row_index(block.row[i], z, y);
    if (index >= 0) {
      seen.row[seen.count] = i;
      seen.at[seen.count] = at + ptrdiff_t{index} * tile.pitch;
      ++seen.count;
    }
    at += score_floats(block.row[i], tile);
  }
  return seen;
}

// Calls body(z, y, query rows that see it) for every key row of a block.
template <class Body>
inline void for_each_key_row(const RowBlock& block, const LaneTile& tile, const Body& body) {
  for (int z = block.keys[0].start; z < block.keys[0].stop; ++z)
    for (int y = block.keys[1].start; y < block.keys[1].stop; ++y) body(z, y, seen_by(block, tile, z, y));
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
