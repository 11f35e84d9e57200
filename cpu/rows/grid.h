// SPDX-License-Identifier: Apache-2.0
// How the row kernels share a call out: what fits into a worker's scratch memory, units of blocks, slabs of units.
#pragma once

#include "cpu/rows/block.h"
#include "cpu/tiles/slabs.h"

namespace jax_na {

constexpr int64_t kRowScores = 24 << 10;  // scores of one block, in floats

inline namespace JAX_NA_ISA {

// A unit of work: neighbouring rows of one dilation group, and a stretch of them along the last axis.
struct RowGrid {
  int blocks[2];  // of the longest group, along the first two axes
  int run;        // blocks of one unit along axis 1
  int tiles;      // lane tiles of a whole row
  int span;       // lane tiles of one unit
  int64_t units;  // of one batch entry and kv head, over all groups
};

// Keys that `count` neighbouring queries visit along an axis, at most.
inline int visited_keys(const Axis& axis, int count) {
  return min(ceil_div(axis.length, axis.dilation), axis.kernel_size + count - 1 + axis.stride - 1);
}
inline int64_t visited_rows(const Problem& p) {
  return int64_t{visited_keys(p.axis[0], p.tile[0])} * visited_keys(p.axis[1], p.tile[1]);
}
inline int visited_columns(const Problem& p, int span) { return visited_keys(p.axis[2], span * kWidth); }
// Columns of a transposed key row: shifted loads reach at most a register beyond either end.
inline int transposed_pitch(int columns) { return padded(columns) + 2 * kWidth; }

// What is packed per key, in floats, and how much of that a worker may keep.
struct RowFeatures {
  int transposed, natural;
  int64_t capacity;
};

inline int64_t row_panel_floats(const Problem& p, int span, const RowFeatures& features) {
  const int columns = visited_columns(p, span);
  return visited_rows(p) *
         (int64_t{transposed_pitch(columns)} * features.transposed + int64_t{columns} * features.natural);
}

// What a worker has to keep, in floats: never more than whole rows need.
inline int64_t row_panel(const Problem& p, const RowFeatures& features) {
  const int tiles = ceil_div(ceil_div(p.axis[2].length, p.axis[2].dilation), kWidth);
  return smaller(features.capacity, row_panel_floats(p, tiles, features)) + 3 * kWidth;
}

// Scores of a block, at most.
inline int64_t row_scores(const Problem& p) {
  const int64_t columns = p.axis[2].kernel_size + kWidth + 3 * (p.axis[2].stride - 1) + 2;
  return int64_t{p.tile[0]} * p.tile[1] * p.axis[0].kernel_size * p.axis[1].kernel_size * columns * kWidth;
}

// Whether the row kernels can do this problem: the scores of a block and the keys of one lane tile have to fit.
inline bool rows_fit(const Problem& p, const RowFeatures& features) {
  return p.tile[0] * p.tile[1] <= kBlockRows && row_scores(p) <= kRowScores &&
         row_panel_floats(p, 1, features) <= features.capacity;
}

inline RowGrid make_row_grid(const Problem& p, const RowFeatures& features, int64_t units_wanted) {
  RowGrid grid{};
  grid.units = group_count(p);
  for (int a = 0; a < 2; ++a) grid.blocks[a] = ceil_div(ceil_div(p.nq[a], p.axis[a].dilation), p.tile[a]);
  grid.tiles = ceil_div(ceil_div(p.nq[2], p.axis[2].dilation), kWidth);
  grid.units *= grid.blocks[0];
  // Long rows first, then tall runs: both share packed keys, and the runs are what is cut to have enough units.
  const int64_t rest = grid.units * grid.blocks[1];
  grid.span = grid.tiles;
  while (grid.span > 1 && (row_panel_floats(p, grid.span, features) > features.capacity ||
                           rest * ceil_div(grid.tiles, grid.span) < units_wanted))
    --grid.span;
  const int spans = ceil_div(grid.tiles, grid.span);
  grid.span = ceil_div(grid.tiles, spans);
  grid.units *= spans;
  grid.run = grid.blocks[1];
  while (grid.run > 1 && grid.units * ceil_div(grid.blocks[1], grid.run) < units_wanted) --grid.run;
  grid.run = ceil_div(grid.blocks[1], ceil_div(grid.blocks[1], grid.run));
  grid.units *= ceil_div(grid.blocks[1], grid.run);
  return grid;
}

// False when the unit's group is too short to have it.
inline bool locate_rows(const Problem& p, const RowGrid& grid, int64_t index, RowUnit& unit) {
  const int sizes[kAxes] = {p.tile[0], p.tile[1] * grid.run, kWidth * grid.span};
  const int counts[kAxes] = {grid.blocks[0], ceil_div(grid.blocks[1], grid.run), ceil_div(grid.tiles, grid.span)};
  for (int a = kAxes - 1; a >= 0; --a) {
    unit.queries[a].start = static_cast<int>(index % counts[a]) * sizes[a];
    index /= counts[a];
  }
  bool exists = true;
  for (int a = kAxes - 1; a >= 0; --a) {
    unit.tile.group[a] = group_of(p, a, static_cast<int>(index % p.axis[a].dilation));
    index /= p.axis[a].dilation;
    const Range queries = unit.tile.group[a].queries;
    unit.queries[a].start += queries.start;
    unit.queries[a].stop = min(unit.queries[a].start + sizes[a], queries.stop);
    exists &= unit.queries[a].start < unit.queries[a].stop;
  }
  return exists;
}

// Goes down a unit block by block: fill(block) packs its key rows, then body(block, lane tile) is called for every lane
// tile and every query head that shares the kv head of the unit (unit.tile.head).
template <class Fill, class Body>
inline void for_each_lane_tile(const Problem& p, RowUnit& unit, bool biased, const Fill& fill, const Body& body) {
  const int repeats = query_heads_per_kv_head(p), kv_head = unit.tile.head;
  for (int y = unit.queries[1].start; y < unit.queries[1].stop; y += p.tile[1]) {
    const Block block = make_block(p, unit, y);
    fill(block);
    for (int x = unit.queries[2].start; x < unit.queries[2].stop; x += kWidth) {
      const LaneTile tile = make_lane_tile(p.axis[2], unit.tile.group[2], x, unit.queries[2].stop, biased);
      for (unit.tile.head = kv_head * repeats; unit.tile.head < (kv_head + 1) * repeats; ++unit.tile.head)
        body(block, tile);
    }
  }
  unit.tile.head = kv_head;
}

// Calls body(unit, memory) for units that cover all queries; unit.tile.head is the kv head.
template <class Body>
inline void for_each_row_unit(const Problem& p, const RowFeatures& features, const Parallel& parallel,
                              const Body& body) {
  if (p.batch == 0) return;
  const int64_t wanted = 4 * parallel.workers / (p.batch * p.kv_heads) + 1;  // results do not depend on the cut
  const RowGrid grid = make_row_grid(p, features, wanted);
  auto unit_body = [&](int64_t number, char* memory) {
    const UnitIndex index = split_unit(number, p.kv_heads, grid.units);
    RowUnit unit;
    if (!locate_rows(p, grid, index.unit, unit)) return;
    unit.tile.head = index.head;
    unit.tile.batch = index.batch;
    body(unit, memory);
  };
  parallel_for(parallel, p.batch * p.kv_heads * grid.units, unit_body);
}

// Calls body(unit) for the units of a slab of one (batch entry, kv head, dilation group).
template <class Body>
inline void for_each_slab_unit(const Problem& p, const TileGrid& grid, const Slabs& slabs, int slab, int span,
                               const Tile& tile, const Body& body) {
  Range all[kAxes];
  for (int a = 0; a < kAxes; ++a) all[a] = tile.group[a].queries;
  const int size = slabs.axis == kAxes - 1 ? kWidth : p.tile[slabs.axis];
  Range& cut = all[slabs.axis];
  cut = {cut.start + slab_start(grid.tiles[slabs.axis], slabs, slab) * size,
         min(cut.start + slab_start(grid.tiles[slabs.axis], slabs, slab + 1) * size, cut.stop)};
  if (all[1].start >= all[1].stop) return;
  for (int z = all[0].start; z < all[0].stop; z += p.tile[0])
    for (int x = all[2].start; x < all[2].stop; x += span * kWidth) {
      RowUnit unit{tile, {{z, min(z + p.tile[0], all[0].stop)}, all[1], {x, min(x + span * kWidth, all[2].stop)}}};
      body(unit);
    }
}

// Slabs of rows; the grid counts lane tiles along the last axis.
struct RowSlabs {
  TileGrid grid;
  Slabs slabs;
};
inline RowSlabs make_row_slabs(Problem p) {
  p.tile[2] = kWidth;
  const TileGrid grid = make_tile_grid(p, Side::kQueries, 0, 0);
  return {grid, choose_slabs(p, grid)};
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
