// SPDX-License-Identifier: Apache-2.0
// Geometry: runs of tiles, the lanes of one tile, and the box of keys (or queries) that it visits in chunks.
#pragma once

#include <stdint.h>

#include "cpu/host/kernels.h"
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
struct Chunk {
  int segments, keys;
  Segment segment[kChunk];
};

inline namespace JAX_NA_ISA {

// Which tokens are the lanes: the queries (visiting keys) or the keys (visiting queries).
enum class Side { kQueries, kKeys };

inline Range present(const Group& g, Side side) { return side == Side::kQueries ? g.queries : g.keys; }

inline constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Tokens that a panel may keep for `count` of a row: there may be a last pair.
inline int paired_tokens(int count) { return kDotPairs ? ceil_div(count, 2) * 2 : count; }

// Tokens of a whole dilation group, at most.
inline int64_t group_tokens(const Problem& p) {
  const auto length = [&](int a) { return ceil_div(p.axis[a].length, p.axis[a].dilation); };
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
inline int visited_extent(const Problem& p, int a, int tiles) {
  const Axis& axis = p.axis[a];
  return min(ceil_div(axis.length, axis.dilation), axis.kernel_size + p.tile[a] * tiles + 2 * (axis.stride - 1));
}

// Units wanted in a whole call, to keep a large machine busy. A constant: results must not depend on the threads
// present.
constexpr int64_t kUnitsWanted = 64;

// Runs as long as the visited tokens fit in `capacity`, but short enough to give `units` of them if there are as many
// tiles.
inline TileGrid make_tile_grid(const Problem& p, Side side, int64_t capacity, int64_t units) {
  TileGrid grid{side, {}, 1, group_count(p)};
  for (int a = 0; a < kAxes; ++a)
    grid.tiles[a] = ceil_div(ceil_div(side == Side::kQueries ? p.nq[a] : p.nk[a], p.axis[a].dilation), p.tile[a]);
  grid.units *= grid.tiles[0] * grid.tiles[1];
  const int64_t rows = int64_t{visited_extent(p, 0, 1)} * visited_extent(p, 1, 1);
  const auto runs = [&](int run) { return ceil_div(grid.tiles[2], run); };
  while (grid.run < grid.tiles[2] && rows * paired_tokens(visited_extent(p, 2, grid.run + 1)) <= capacity &&
         grid.units * runs(grid.run + 1) >= units)
    ++grid.run;
  grid.run = ceil_div(grid.tiles[2], runs(grid.run));
  grid.units *= runs(grid.run);
  return grid;
}

// Units wanted of every (batch entry, head) pair.
inline int64_t units_per_head(const Problem& p, int heads) {
  const int64_t pairs = p.batch * heads;
  return pairs < kUnitsWanted ? (kUnitsWanted + pairs - 1) / (pairs > 0 ? pairs : 1) : 1;
}

// Finds the first tile of a unit, and the position past its last token along the last axis; false when the unit's group
// is too short to have it.
inline bool locate_run(const Problem& p, const TileGrid& grid, int64_t index, Tile& tile, int& stop) {
  bool exists = true;
  for (int a = kAxes - 1; a >= 0; --a) {
    const int count = a == kAxes - 1 ? ceil_div(grid.tiles[a], grid.run) : grid.tiles[a];
    tile.first[a] = static_cast<int>(index % count) * p.tile[a] * (a == kAxes - 1 ? grid.run : 1);
    index /= count;
  }
  for (int a = kAxes - 1; a >= 0; --a) {
    tile.group[a] = group_of(p, a, static_cast<int>(index % p.axis[a].dilation));
    index /= p.axis[a].dilation;
    const Range tokens = present(tile.group[a], grid.side);
    tile.first[a] += tokens.start;
    exists &= tile.first[a] < tokens.stop;
  }
  stop = min(tile.first[2] + grid.run * p.tile[2], present(tile.group[2], grid.side).stop);
  return exists;
}

inline int local_query(const Problem& p, const Tile& t, int a, int position) {
  return position * p.axis[a].dilation + t.group[a].index - p.q0[a];
}
inline int local_key(const Problem& p, const Tile& t, int a, int position) {
  return position * p.axis[a].dilation + t.group[a].index - p.k0[a];
}
inline int64_t query_token(const Problem& p, const Tile& t, const int (&i)[kAxes]) {
  return (int64_t{local_query(p, t, 0, i[0])} * p.nq[1] + local_query(p, t, 1, i[1])) * p.nq[2] +
         local_query(p, t, 2, i[2]);
}
inline int64_t key_token(const Problem& p, const Tile& t, const int (&i)[kAxes]) {
  return (int64_t{local_key(p, t, 0, i[0])} * p.nk[1] + local_key(p, t, 1, i[1])) * p.nk[2] + local_key(p, t, 2, i[2]);
}

inline Range lane_window(const Problem& p, const Tile& t, Side side, int a, int position) {
  const Group& g = t.group[a];
  if (side == Side::kQueries) return window(p.axis[a], g.length, position);
  const Range all = inverse_window(p.axis[a], g.length, position);
  return {max(all.start, g.queries.start), max(min(all.stop, g.queries.stop), max(all.start, g.queries.start))};
}

// A key that no query sees has an empty range; the box is the hull of the ranges that are not empty.
inline void extend(Range& box, Range& inner, Range lane) {
  inner = {max(inner.start, lane.start), min(inner.stop, lane.stop)};
  if (lane.start < lane.stop) box = {min(box.start, lane.start), max(box.stop, lane.stop)};
}

inline void make_lanes(const Problem& p, const Tile& t, Side side, Lanes& lanes) {
  for (int lane = 0; lane < kLanes; ++lane) lanes.valid[lane] = 1;
  for (int a = 0, inner = kLanes; a < kAxes; ++a) {
    inner /= p.tile[a];  // lanes between neighbours along this axis
    const int last = present(t.group[a], side).stop - 1;
    lanes.box[a] = {INT32_MAX, INT32_MIN};
    lanes.inner[a] = {INT32_MIN, INT32_MAX};
    for (int step = 0; step < p.tile[a]; ++step) {
      const int position = min(t.first[a] + step, last);
      const Range range = lane_window(p, t, side, a, position);
      extend(lanes.box[a], lanes.inner[a], range);
      for (int outer = step * inner; outer < kLanes; outer += p.tile[a] * inner)
        for (int lane = outer; lane < outer + inner; ++lane) {
          lanes.valid[lane] &= t.first[a] + step <= last;
          lanes.position[a][lane] = position;
          lanes.start[a][lane] = range.start;
          lanes.stop[a][lane] = range.stop;
        }
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const int position[kAxes] = {lanes.position[0][lane], lanes.position[1][lane], lanes.position[2][lane]};
    lanes.token[lane] = side == Side::kQueries ? query_token(p, t, position) : key_token(p, t, position);
  }
}

// Queries present that see any of the keys first..stop-1 along an axis; empty when there are none.
inline Range visited_by_keys(const Problem& p, const Tile& t, int a, int first, int stop) {
  Range box = {INT32_MAX, INT32_MIN}, inner = {INT32_MIN, INT32_MAX};
  for (int k = first; k < stop; ++k) extend(box, inner, lane_window(p, t, Side::kKeys, a, k));
  return box.start < box.stop ? box : Range{0, 0};
}

inline bool inside(int i, Range r) { return r.start <= i && i < r.stop; }

// Calls body() with the box in pieces of at most kChunk tokens, in row-major order.
template <class Body>
inline void for_each_chunk(const Lanes& lanes, Chunk& chunk, const Body& body) {
  const Range(&box)[kAxes] = lanes.box;
  chunk.segments = chunk.keys = 0;
  for (int z = box[0].start; z < box[0].stop; ++z)
    for (int y = box[1].start; y < box[1].stop; ++y) {
      const bool row_inner = inside(z, lanes.inner[0]) && inside(y, lanes.inner[1]);
      for (int x = box[2].start, n; x < box[2].stop; x += n) {
        n = min(box[2].stop - x, kChunk - chunk.keys);
        const bool inner = row_inner && inside(x, lanes.inner[2]) && inside(x + n - 1, lanes.inner[2]);
        chunk.segment[chunk.segments++] = {{z, y, x}, n, inner};
        chunk.keys += n;
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
