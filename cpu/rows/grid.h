// SPDX-License-Identifier: Apache-2.0
// How the row kernels share a call out: what fits into a worker's scratch memory, units of blocks, slabs of units.
#pragma once

#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cpu/rows/block.h"
#include "cpu/simd/parallel.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/slabs.h"
#include "cpu/tiles/tile.h"

namespace jax_na {

constexpr int64_t kRowScores = 24 << 10;  // floats, 96 KB: scores of one block

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
inline int64_t visited_rows(const Problem& problem) {
  return int64_t{visited_keys(problem.axis[0], problem.tile[0])} * visited_keys(problem.axis[1], problem.tile[1]);
}
inline int visited_columns(const Problem& problem, int span) { return visited_keys(problem.axis[2], span * kWidth); }

// Columns of a transposed key row: shifted loads reach at most a register beyond either end.
inline int transposed_pitch(int columns) { return padded(columns) + 2 * kWidth; }

// What is packed per key, in floats, and how much of that a worker may keep.
struct RowFeatures {
  int transposed, natural;
  int64_t capacity;
};

inline int64_t row_panel_floats(const Problem& problem, int span, const RowFeatures& features) {
  const int64_t columns = visited_columns(problem, span);
  const int64_t pitch = transposed_pitch(static_cast<int>(columns));
  return visited_rows(problem) * (pitch * features.transposed + columns * features.natural);
}

// What a worker has to keep, in floats: never more than whole rows need.
inline int64_t row_panel(const Problem& problem, const RowFeatures& features) {
  const Axis& last = problem.axis[kAxes - 1];
  const int tiles = ceil_div(ceil_div(last.length, last.dilation), kWidth);
  return smaller(features.capacity, row_panel_floats(problem, tiles, features)) + 3 * kWidth;
}

// Scores of a block, at most: columns as LaneTile counts them, with their margins.
inline int64_t row_scores(const Problem& problem) {
  const Axis(&axis)[kAxes] = problem.axis;
  const int64_t columns = axis[2].kernel_size + kWidth + 3 * (axis[2].stride - 1) + 2;
  const int64_t query_rows = int64_t{problem.tile[0]} * problem.tile[1];
  return query_rows * axis[0].kernel_size * axis[1].kernel_size * columns * kWidth;
}

// Long rows first, then tall runs: both share packed keys, and the runs are what is cut to have enough units.
inline RowGrid make_row_grid(const Problem& problem, const RowFeatures& features, int64_t units_wanted) {
  RowGrid grid{};
  const auto queries = [&](int axis) { return ceil_div(problem.nq[axis], problem.axis[axis].dilation); };
  for (int axis = 0; axis < 2; ++axis) grid.blocks[axis] = ceil_div(queries(axis), problem.tile[axis]);
  grid.tiles = ceil_div(queries(2), kWidth);
  grid.units = group_count(problem);
  grid.units *= grid.blocks[0];

  // Shorter than whole rows where the keys of their blocks do not fit, or whole rows would be too few units.
  const int64_t rest = grid.units * grid.blocks[1];
  grid.span = grid.tiles;
  while (grid.span > 1 && (row_panel_floats(problem, grid.span, features) > features.capacity ||
                           rest * ceil_div(grid.tiles, grid.span) < units_wanted))
    --grid.span;
  const int spans = ceil_div(grid.tiles, grid.span);
  grid.span = ceil_div(grid.tiles, spans);
  grid.units *= spans;

  // All the way down, unless that gives too few units; then nearly equal runs.
  const auto runs = [&] { return ceil_div(grid.blocks[1], grid.run); };
  grid.run = grid.blocks[1];
  while (grid.run > 1 && grid.units * runs() < units_wanted) --grid.run;
  grid.run = ceil_div(grid.blocks[1], runs());
  grid.units *= runs();
  return grid;
}

// Finds the queries of a unit; false when its group is too short to have it. The index counts as in locate_run: units
// of a group, last axis fastest, then groups.
inline bool locate_rows(const Problem& problem, const RowGrid& grid, int64_t index, RowUnit& unit) {
  const int sizes[kAxes] = {problem.tile[0], problem.tile[1] * grid.run, kWidth * grid.span};
  const int counts[kAxes] = {grid.blocks[0], ceil_div(grid.blocks[1], grid.run), ceil_div(grid.tiles, grid.span)};
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    unit.queries[axis].start = static_cast<int>(index % counts[axis]) * sizes[axis];
    index /= counts[axis];
  }
  bool exists = true;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    unit.tile.group[axis] = group_of(problem, axis, static_cast<int>(index % problem.axis[axis].dilation));
    index /= problem.axis[axis].dilation;
    const Range all = unit.tile.group[axis].queries;
    Range& queries = unit.queries[axis];
    queries.start += all.start;
    queries.stop = min(queries.start + sizes[axis], all.stop);
    exists &= queries.start < queries.stop;
  }
  return exists;
}

// Goes down a unit block by block: fill(block) packs its key rows, then body(block lanes) is called for every lane tile
// and every query head that shares the kv head of the unit (unit.tile.head).
template <class Fill, class Body>
inline void for_each_lane_tile(const Problem& problem, RowUnit& unit, bool biased, const Fill& fill, const Body& body) {
  const int repeats = query_heads_per_kv_head(problem), kv_head = unit.tile.head;
  const Range(&queries)[kAxes] = unit.queries;
  for (int y = queries[1].start; y < queries[1].stop; y += problem.tile[1]) {
    const RowBlock block = make_block(problem, unit, y);
    fill(block);
    for (int x = queries[2].start; x < queries[2].stop; x += kWidth) {
      const LaneTile tile = make_lane_tile(problem.axis[2], unit.tile.group[2], x, queries[2].stop, biased);
      for (unit.tile.head = kv_head * repeats; unit.tile.head < (kv_head + 1) * repeats; ++unit.tile.head)
        body(BlockLanes{problem, unit, block, tile});
    }
  }
  unit.tile.head = kv_head;
}

// Calls body(unit, memory) for units that cover all queries; unit.tile.head is the kv head.
template <class Body>
inline void for_each_row_unit(const Problem& problem, const RowFeatures& features, const Parallel& parallel,
                              const Body& body) {
  if (problem.batch == 0) return;
  const int64_t pairs = problem.batch * problem.kv_heads;
  const int64_t wanted = 4 * parallel.workers / pairs + 1;  // results do not depend on the cut
  const RowGrid grid = make_row_grid(problem, features, wanted);
  auto unit_body = [&](int64_t number, char* memory) {
    const UnitIndex index = split_unit(number, problem.kv_heads, grid.units);
    RowUnit unit;
    if (!locate_rows(problem, grid, index.unit, unit)) return;
    unit.tile.head = index.head;
    unit.tile.batch = index.batch;
    body(unit, memory);
  };
  parallel_for(parallel, pairs * grid.units, unit_body);
}

// Slabs of rows; the grid counts lane tiles along the last axis.
inline SlabbedGrid make_row_slabs(Problem problem) {
  problem.tile[2] = kWidth;
  const TileGrid grid = make_tile_grid(problem, Side::kQueries, 0, 0);
  return {grid, choose_slabs(problem, grid)};
}

// Calls body(unit) for the units of a slab of one (batch entry, kv head, dilation group), `span` lane tiles long.
template <class Body>
inline void for_each_slab_unit(const Problem& problem, const SlabbedGrid& rows, int slab, int span, const Tile& tile,
                               const Body& body) {
  const int axis = rows.slabs.axis, tiles = rows.grid.tiles[axis];
  const int size = axis == kAxes - 1 ? kWidth : problem.tile[axis];
  Range all[kAxes] = {tile.group[0].queries, tile.group[1].queries, tile.group[2].queries};
  Range& cut = all[axis];
  cut = {cut.start + slab_start(tiles, rows.slabs, slab) * size,
         min(cut.start + slab_start(tiles, rows.slabs, slab + 1) * size, cut.stop)};
  if (all[1].start >= all[1].stop) return;
  for (int z = all[0].start; z < all[0].stop; z += problem.tile[0])
    for (int x = all[2].start; x < all[2].stop; x += span * kWidth) {
      const Range deep{z, min(z + problem.tile[0], all[0].stop)};
      const Range wide{x, min(x + span * kWidth, all[2].stop)};
      RowUnit unit{tile, {deep, all[1], wide}};
      body(unit);
    }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
