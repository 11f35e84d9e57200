// SPDX-License-Identifier: Apache-2.0
// Geometry: runs of tiles, the lanes of one tile, and the box of keys (or queries) that it visits in chunks.
#pragma once

#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cpu/host/kernels.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/micro.h"

namespace jax_na {

// kLanes tokens of one batch entry, head and dilation group: tile[0] x tile[1] x tile[2] neighbours.
struct Tile {
  int64_t batch;
  int head;
  Group group[kAxes];
  int first[kAxes];  // position of the first lane
};

// What each lane needs to know along each axis. Lanes past the end repeat the last token and are never stored.
struct Lanes {
  int valid[kLanes];
  int64_t token[kLanes];  // index among the tokens present
  int32_t position[kAxes][kLanes];
  int32_t start[kAxes][kLanes];  // window (or inverse window) of the lane
  int32_t stop[kAxes][kLanes];
  Range box[kAxes];    // union over the lanes
  Range inner[kAxes];  // intersection: no mask needed
};

// Part of a row of the box, along the last axis.
struct Segment {
  int position[kAxes];
  int count;
  bool inner;
};
// The part of a box that is computed at once: what the scores of a tile have room for.
struct BoxChunk {
  int segments, keys;
  Segment segment[kChunk];
};

inline namespace JAX_NA_ISA {

// Which tokens are the lanes: the queries (visiting keys) or the keys (visiting queries).
enum class Side { kQueries, kKeys };

inline Range present(const Group& group, Side side) { return side == Side::kQueries ? group.queries : group.keys; }

inline constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Tokens that a panel may keep for `count` of a row: there may be a last pair.
inline int paired_tokens(int count) { return kDotPairs ? ceil_div(count, 2) * 2 : count; }

// Tokens of a whole dilation group, at most.
inline int64_t group_tokens(const Problem& problem) {
  const auto length = [&](int axis) { return ceil_div(problem.axis[axis].length, problem.axis[axis].dilation); };
  return int64_t{length(0)} * length(1) * paired_tokens(length(2));
}

// A unit of work is a run of neighbouring tiles along the last axis, which share the tokens they visit.
struct TileGrid {
  Side side;
  int tiles[kAxes];  // of the longest group
  int run;           // tiles of one unit
  int64_t units;     // of one batch entry and head, over all groups
};

// Units are numbered head by head, then along the grid: the heads of a token share pages of memory, and finding a page
// again is what costs most in reading scattered tokens.
struct UnitIndex {
  int64_t batch, unit;
  int head;
};
inline UnitIndex split_unit(int64_t number, int heads, int64_t units) {
  return {number / heads / units, number / heads % units, static_cast<int>(number % heads)};
}

// Tokens that a tile (along the last axis: a run of `tiles` tiles) visits along an axis, at most.
inline int visited_extent(const Problem& problem, int axis, int tiles) {
  const Axis& grid = problem.axis[axis];
  return min(ceil_div(grid.length, grid.dilation),
             grid.kernel_size + problem.tile[axis] * tiles + 2 * (grid.stride - 1));
}

// Units wanted in a whole call, to keep a large machine busy. A constant: results must not depend on the threads
// present.
constexpr int64_t kUnitsWanted = 64;

// Runs as long as the visited tokens fit in `capacity`, but short enough to give `units` of them if there are as many
// tiles.
inline TileGrid make_tile_grid(const Problem& problem, Side side, int64_t capacity, int64_t units) {
  TileGrid grid{side, {}, 1, group_count(problem)};
  for (int axis = 0; axis < kAxes; ++axis) {
    const int tokens = side == Side::kQueries ? problem.nq[axis] : problem.nk[axis];
    grid.tiles[axis] = ceil_div(ceil_div(tokens, problem.axis[axis].dilation), problem.tile[axis]);
  }
  grid.units *= grid.tiles[0] * grid.tiles[1];
  // Longer runs share more of what they visit, until it does not fit or there are too few of them.
  const int64_t rows = int64_t{visited_extent(problem, 0, 1)} * visited_extent(problem, 1, 1);
  const auto runs = [&](int run) { return ceil_div(grid.tiles[2], run); };
  while (grid.run < grid.tiles[2] && rows * paired_tokens(visited_extent(problem, 2, grid.run + 1)) <= capacity &&
         grid.units * runs(grid.run + 1) >= units)
    ++grid.run;
  grid.run = ceil_div(grid.tiles[2], runs(grid.run));  // as many runs, but of nearly equal length
  grid.units *= runs(grid.run);
  return grid;
}

// Units wanted of every (batch entry, head) pair.
inline int64_t units_per_head(const Problem& problem, int heads) {
  const int64_t pairs = problem.batch * heads;
  return pairs < kUnitsWanted ? (kUnitsWanted + pairs - 1) / (pairs > 0 ? pairs : 1) : 1;
}

// Finds the first tile of a unit, and the position past its last token along the last axis; false when the unit's group
// is too short to have it. The index counts runs, last axis fastest, then the dilation groups in the same order.
inline bool locate_run(const Problem& problem, const TileGrid& grid, int64_t index, Tile& tile, int& stop) {
  bool exists = true;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    const int run = axis == kAxes - 1 ? grid.run : 1;
    const int count = axis == kAxes - 1 ? ceil_div(grid.tiles[axis], grid.run) : grid.tiles[axis];
    tile.first[axis] = static_cast<int>(index % count) * problem.tile[axis] * run;
    index /= count;
  }
  // Groups differ in length by one token: the grid is that of the longest, and the others lack its last tiles.
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    tile.group[axis] = group_of(problem, axis, static_cast<int>(index % problem.axis[axis].dilation));
    index /= problem.axis[axis].dilation;
    const Range tokens = present(tile.group[axis], grid.side);
    tile.first[axis] += tokens.start;
    exists &= tile.first[axis] < tokens.stop;
  }
  stop = min(tile.first[2] + grid.run * problem.tile[2], present(tile.group[2], grid.side).stop);
  return exists;
}

// Coordinate of a position along an axis, counted from the first query (key) present.
inline int local_query(const Problem& problem, const Tile& tile, int axis, int position) {
  return position * problem.axis[axis].dilation + tile.group[axis].index - problem.q0[axis];
}
inline int local_key(const Problem& problem, const Tile& tile, int axis, int position) {
  return position * problem.axis[axis].dilation + tile.group[axis].index - problem.k0[axis];
}

// Index of the token at a position among the queries (keys) present.
inline int64_t query_token(const Problem& problem, const Tile& tile, const int (&position)[kAxes]) {
  const auto local = [&](int axis) { return local_query(problem, tile, axis, position[axis]); };
  return (int64_t{local(0)} * problem.nq[1] + local(1)) * problem.nq[2] + local(2);
}
inline int64_t key_token(const Problem& problem, const Tile& tile, const int (&position)[kAxes]) {
  const auto local = [&](int axis) { return local_key(problem, tile, axis, position[axis]); };
  return (int64_t{local(0)} * problem.nk[1] + local(1)) * problem.nk[2] + local(2);
}

// Row of a token of the tile's batch entry and head, in [batch, queries, heads] or [batch, keys, kv_heads].
inline int64_t query_row(const Problem& problem, const Tile& tile, int64_t token) {
  return (tile.batch * query_tokens(problem) + token) * problem.heads + tile.head;
}
inline int64_t key_row(const Problem& problem, const Tile& tile, int64_t token) {
  return (tile.batch * key_tokens(problem) + token) * problem.kv_heads + tile.head;
}

// The window of a query, or the queries present in the inverse window of a key.
inline Range lane_window(const Problem& problem, const Tile& tile, Side side, int axis, int position) {
  const Group& group = tile.group[axis];
  if (side == Side::kQueries) return window(problem.axis[axis], group.length, position);
  const Range all = inverse_window(problem.axis[axis], group.length, position);
  const int start = max(all.start, group.queries.start);
  return {start, max(min(all.stop, group.queries.stop), start)};
}

// A key that no query sees has an empty range; the box is the hull of the ranges that are not empty.
inline void extend(Range& box, Range& inner, Range lane) {
  inner = {max(inner.start, lane.start), min(inner.stop, lane.stop)};
  if (lane.start < lane.stop) box = {min(box.start, lane.start), max(box.stop, lane.stop)};
}

// What the lanes need to know along one axis; `apart` lanes lie between neighbours along it. Lanes are numbered last
// axis fastest, so the lanes at one position are runs of `apart`, every tile[axis] * apart lanes.
inline void make_lanes_on_axis(const Problem& problem, const Tile& tile, Side side, int axis, int apart, Lanes& lanes) {
  const int last = present(tile.group[axis], side).stop - 1;
  lanes.box[axis] = {INT32_MAX, INT32_MIN};
  lanes.inner[axis] = {INT32_MIN, INT32_MAX};
  for (int step = 0; step < problem.tile[axis]; ++step) {
    const int position = min(tile.first[axis] + step, last);
    const Range range = lane_window(problem, tile, side, axis, position);
    extend(lanes.box[axis], lanes.inner[axis], range);
    for (int outer = step * apart; outer < kLanes; outer += problem.tile[axis] * apart)
      for (int lane = outer; lane < outer + apart; ++lane) {
        lanes.valid[lane] &= tile.first[axis] + step <= last;
        lanes.position[axis][lane] = position;
        lanes.start[axis][lane] = range.start;
        lanes.stop[axis][lane] = range.stop;
      }
  }
}

inline void make_lanes(const Problem& problem, const Tile& tile, Side side, Lanes& lanes) {
  for (int lane = 0; lane < kLanes; ++lane) lanes.valid[lane] = 1;
  int apart = kLanes;
  for (int axis = 0; axis < kAxes; ++axis) {
    apart /= problem.tile[axis];
    make_lanes_on_axis(problem, tile, side, axis, apart, lanes);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const int position[kAxes] = {lanes.position[0][lane], lanes.position[1][lane], lanes.position[2][lane]};
    lanes.token[lane] =
        side == Side::kQueries ? query_token(problem, tile, position) : key_token(problem, tile, position);
  }
}

// Queries present that see any of the keys first..stop-1 along an axis; empty when there are none.
inline Range visited_by_keys(const Problem& problem, const Tile& tile, int axis, int first, int stop) {
  Range box = {INT32_MAX, INT32_MIN}, inner = {INT32_MIN, INT32_MAX};
  for (int key = first; key < stop; ++key) extend(box, inner, lane_window(problem, tile, Side::kKeys, axis, key));
  return box.start < box.stop ? box : Range{0, 0};
}

inline bool inside(int position, Range range) { return range.start <= position && position < range.stop; }

// Calls body() with the box in pieces of at most kChunk tokens, in row-major order.
template <class Body>
inline void for_each_chunk(const Lanes& lanes, BoxChunk& chunk, const Body& body) {
  const Range(&box)[kAxes] = lanes.box;
  chunk.segments = chunk.keys = 0;
  for (int z = box[0].start; z < box[0].stop; ++z)
    for (int y = box[1].start; y < box[1].stop; ++y) {
      const bool row_inner = inside(z, lanes.inner[0]) && inside(y, lanes.inner[1]);
      for (int x = box[2].start, count; x < box[2].stop; x += count) {
        count = min(box[2].stop - x, kChunk - chunk.keys);
        const bool inner = row_inner && inside(x, lanes.inner[2]) && inside(x + count - 1, lanes.inner[2]);
        chunk.segment[chunk.segments] = {{z, y, x}, count, inner};
        ++chunk.segments;
        chunk.keys += count;
        if (chunk.keys == kChunk) {
          body();
          chunk.segments = chunk.keys = 0;
        }
      }
    }
  if (chunk.keys != 0) body();
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
