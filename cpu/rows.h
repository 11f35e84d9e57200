// SPDX-License-Identifier: Apache-2.0
// The row kernels: for small windows, where the tiles of tile.h would mostly compute pairs outside every window.
//
// The lanes are kWidth neighbouring queries of one row (the last axis), and a block is up to kBlockRows such rows. Key
// rows are packed transposed, [dim][columns], so that the products of all lanes with "the key c places further" are
// one shifted load: no pair outside a window is computed along the first two axes, and few along the last. The products
// with values have features in the lanes and take exactly the pairs in the windows, two outputs at a time.
#pragma once

#include <array>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "scores.h"
#include "slabs.h"

namespace jax_na {

constexpr int kBlockRows = 4;             // query rows of a block, at most
constexpr int64_t kRowScores = 24 << 10;  // scores of one block, in floats

inline namespace JAX_NA_ISA {

// A tile without lanes along the last axis asks for the row kernels: its other sizes are the rows of a block.
inline bool uses_rows(const Problem& p) { return p.tile[2] == 0; }

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

// One query row of a block: its windows along the first two axes.
struct QueryRow {
  int z, y;
  Range keys[2];
};
inline int key_rows(const QueryRow& row) { return extent(row.keys[0]) * extent(row.keys[1]); }

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

// Queries of a unit, along every axis in positions of its group.
struct RowUnit {
  Tile tile;  // batch, head and group
  Range queries[kAxes];
};

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

// Packed key rows of the present block. Rows along axis 1 share `slots` places in turn, so that going down a run every
// row is packed once.
struct Ring {
  Range z, columns;
  int slots;
  int packed;  // rows before this one (along axis 1) have been packed
};

inline Ring make_ring(const Problem& p, const RowUnit& unit) {
  const auto keys = [&](int a) {
    return tile_keys(p.axis[a], unit.tile.group[a].length, unit.queries[a].start, unit.queries[a].stop - 1);
  };
  return {keys(0), keys(2), visited_keys(p.axis[1], p.tile[1]), INT32_MIN};
}

inline int slot(const Ring& ring, int z, int y) { return (z - ring.z.start) * ring.slots + y % ring.slots; }

inline float* transposed_row(const Ring& ring, float* base, int dim, int z, int y) {
  return base + int64_t{slot(ring, z, y)} * padded(dim) * transposed_pitch(extent(ring.columns)) + kWidth;
}
inline float* natural_row(const Ring& ring, float* base, int dim, int z, int y) {
  return base + int64_t{slot(ring, z, y)} * padded(dim) * extent(ring.columns);
}

// Floats of all transposed rows of a ring.
inline int64_t ring_floats(const Ring& ring, int dim) {
  return int64_t{extent(ring.z)} * ring.slots * padded(dim) * transposed_pitch(extent(ring.columns));
}

// to[d * pitch + j] = factor * token_j[d] for `count` tokens `step` apart; whole registers are written.
template <class T>
inline void pack_transposed(const T* token, int64_t step, int count, int dim, float factor, float* to,
                            ptrdiff_t pitch) {
  for (int j = 0; j < count; j += kWidth, token += kWidth * step) {
    const T* from[kWidth];
    for (int i = 0; i < kWidth; ++i) from[i] = token + min(i, count - j - 1) * step;
    int d = 0;
    for (; d + kWidth <= dim; d += kWidth) {
      Vec row[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) row[i] = load_wide(from[i] + d);
      transpose(row);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(to + (d + i) * pitch + j, row[i] * splat(factor));
    }
    for (; d < dim; ++d)
      for (int i = 0; i < kWidth; ++i) to[d * pitch + j + i] = factor * to_accumulator(from[i][d]);
  }
}

// Whether scores are dot products of pairs of bfloat16, half as many as features.
template <class T>
inline constexpr bool paired(int dim) {
  return kDotPairs && std::is_same_v<T, BFloat16> && dim % 2 == 0;
}

// The same for an operand of scores: pairs of features stay together, as they are.
template <class T>
inline void pack_operand(const T* token, int64_t step, int count, int dim, float factor, float* to, ptrdiff_t pitch) {
  if (!paired<T>(dim)) return pack_transposed(token, step, count, dim, factor, to, pitch);
  for (int j = 0; j < count; j += kWidth, token += kWidth * step) {
    const T* from[kWidth];
    for (int i = 0; i < kWidth; ++i) from[i] = token + min(i, count - j - 1) * step;
    int d = 0;
    for (; d + kWidth <= dim / 2; d += kWidth) {
      Vec row[kWidth];
      for (int i = 0; i < kWidth; ++i) memcpy(&row[i], from[i] + 2 * d, sizeof(Vec));
      transpose(row);
      for (int i = 0; i < kWidth; ++i) store(to + (d + i) * pitch + j, row[i]);
    }
    for (; d < dim / 2; ++d)
      for (int i = 0; i < kWidth; ++i) memcpy(to + d * pitch + j + i, from[i] + 2 * d, sizeof(float));
  }
}

// to[j][d] = factor * token_j[d], rows padded with zeros to whole registers.
template <class T>
inline void pack_natural(const T* token, int64_t step, int count, int dim, float factor, float* to) {
  for (int j = 0; j < count; ++j, token += step, to += padded(dim)) {
    int d = 0;
    for (; d + kWidth <= dim; d += kWidth) store(to + d, load_wide(token + d) * splat(factor));
    if (d < dim) store(to + d, load_wide(token + d, dim - d) * splat(factor));
  }
}

// Scores of R query rows and C columns with one key row: sum[r][c] = sum_d tile_r[d][lane] * key_{lane, c}[d], where
// d counts features, or pairs of them.
template <int R, int C, bool kShifted, bool kPaired>
[[gnu::always_inline]] inline void score_block(const float* const* tiles, const float* keys, ptrdiff_t pitch, int dim,
                                               Vec (&sum)[R][C]) {
  const float* tile[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) tile[r] = tiles[r];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) sum[r][c] = Vec{};
  const auto key = [&](int c) {
    if constexpr (kShifted) return load(keys + c);
    if constexpr (!kPaired) return splat(keys[c]);
    int32_t pair;
    memcpy(&pair, keys + c, sizeof pair);
    return from_bits(splat(pair));
  };
  const auto add = [](Vec& to, Vec a, Vec b) {
    if constexpr (kPaired)
      to = dot_pairs(to, a, b);
    else
      to += a * b;
  };
#pragma GCC unroll 2
  for (int d = 0; d < dim; ++d, keys += pitch) {
    if constexpr (R <= C) {  // the smaller side stays in registers
      Vec t[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) t[r] = in_register(load(tile[r] + d * kWidth));
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        const Vec k = R == 1 ? key(c) : in_register(key(c));
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) add(sum[r][c], t[r], k);
      }
    } else {
      Vec k[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) k[c] = in_register(key(c));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec t = C == 1 ? load(tile[r] + d * kWidth) : in_register(load(tile[r] + d * kWidth));
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) add(sum[r][c], t, k[c]);
      }
    }
  }
}

template <int R, int C>
[[gnu::always_inline]] inline void scale_scores(float scale, Vec (&sum)[R][C]) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) sum[r][c] *= splat(scale);
}

constexpr int kScoreBlock = kRegisters >= 32 ? 24 : 12;  // accumulators, beside the operands
constexpr int kScoreColumns = 8;  // enough to hide the latency of two fused multiply-adds a cycle

// Scores of one block of columns, handed to finish(first column, sums).
template <int R, int C, class Finish>
void score_columns(const Finish& finish, const LaneTile& tile, const float* const* tiles, const float* keys,
                   ptrdiff_t pitch, int dim, bool pairs, int first) {
  Vec sum[R][C];
  if constexpr (kDotPairs) {
    if (pairs) {
      if (tile.shifted)
        score_block<R, C, true, true>(tiles, keys + first, pitch, dim / 2, sum);
      else
        score_block<R, C, false, true>(tiles, keys + first, pitch, dim / 2, sum);
      return finish(first, sum);
    }
  }
  if (tile.shifted)
    score_block<R, C, true, false>(tiles, keys + first, pitch, dim, sum);
  else
    score_block<R, C, false, false>(tiles, keys + first, pitch, dim, sum);
  finish(first, sum);
}

template <int R, class Finish, int... C>
constexpr auto score_table(std::integer_sequence<int, C...>) {
  return std::array{score_columns<R, C + 1, Finish>...};
}

// All columns of R query rows, in nearly equal blocks.
template <int R, class Finish>
inline void score_rows(const Finish& finish, const LaneTile& tile, const float* const* tiles, const float* keys,
                       ptrdiff_t pitch, int dim, bool pairs) {
  constexpr int kMax = min(kScoreColumns, kScoreBlock / R);
  static constexpr auto kTable = score_table<R, Finish>(std::make_integer_sequence<int, kMax>{});
  const int blocks = (tile.columns + kMax - 1) / kMax, size = tile.columns / blocks, larger = tile.columns % blocks;
  for (int i = 0, first = 0; i < blocks; ++i) {
    const int count = size + (i < larger);
    kTable[count - 1](finish, tile, tiles, keys, pitch, dim, pairs, first);
    first += count;
  }
}

template <class Finish>
inline void score_rows(int rows, const Finish& finish, const LaneTile& tile, const float* const* tiles,
                       const float* keys, ptrdiff_t pitch, int dim, bool pairs) {
  match<1, 2, 3, 4>(
      rows, [&](auto count) { score_rows<decltype(count)::value>(finish, tile, tiles, keys, pitch, dim, pairs); });
}

// First element of the packed key row for column 0 of a lane tile.
inline const float* key_columns(const Ring& ring, const LaneTile& tile, const float* row) {
  return row + (tile.shifted ? tile.first : 0) + tile.low - ring.columns.start;
}

inline IntVec in_window(const LaneTile& tile, int column) {
  return (splat(column) >= load(tile.start)) & (splat(column) < load(tile.stop));
}

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

// Calls body(z, y, key token) for the key rows of a block that are not packed yet.
template <class Body>
inline void fill_rows(const Problem& p, const RowUnit& unit, const Block& block, Ring& ring, const Body& body) {
  for (int y = max(ring.packed, block.keys[1].start); y < block.keys[1].stop; ++y)
    for (int z = ring.z.start; z < ring.z.stop; ++z) {
      const int position[kAxes] = {z, y, ring.columns.start};
      body(z, y, key_token(p, unit.tile, position));
    }
  ring.packed = block.keys[1].stop;
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

// Index of a key row among those of a query row, -1 when it is outside.
inline int key_row_index(const QueryRow& row, int z, int y) {
  if (!inside(z, row.keys[0]) || !inside(y, row.keys[1])) return -1;
  return (z - row.keys[0].start) * extent(row.keys[1]) + y - row.keys[1].start;
}

// Rows of inputs (keys or queries), each with the weights that go with it.
constexpr int kInputRows = 32;
struct Inputs {
  int rows;
  const float* input[kInputRows];  // [position][pitch]
  const float* weight[kInputRows];
};

// Two neighbouring outputs (queries or keys) and the inputs that either of them sees, first <= i < first + count, the
// same in every row: output o adds weight[row][offset[o] + (i - first) * step] times input i. The weight of an input
// that only the other sees is zero.
struct Pair {
  int first, count;
  ptrdiff_t offset[2], step;
};

// Two queries of a row: their inputs are keys, in columns of the ring.
inline Pair query_pair(const LaneTile& tile, const Ring& ring, int lane, int other) {
  const int first = tile.start[lane] + tile.low + (tile.shifted ? tile.first + lane : 0);
  const int shift = tile.shifted ? other - lane : 0;
  const ptrdiff_t at = tile.margin + tile.start[lane];
  return {first - ring.columns.start,
          tile.stop[other] + shift - tile.start[lane],
          {at * kWidth + lane, (at - shift) * kWidth + other},
          kWidth};
}

template <int V>
[[gnu::always_inline]] inline void add_pair(const Inputs& inputs, int feature, ptrdiff_t pitch, const Pair& pair,
                                            Vec (&sum)[2][V]) {
  for (int row = 0; row < inputs.rows; ++row) {
    const float* input = inputs.input[row] + feature + pair.first * pitch;
    const float *w0 = inputs.weight[row] + pair.offset[0], *w1 = inputs.weight[row] + pair.offset[1];
#pragma GCC unroll 2
    for (int i = 0; i < pair.count; ++i, input += pitch, w0 += pair.step, w1 += pair.step) {
      const Vec a = splat(*w0), b = splat(*w1);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const Vec x = in_register(load(input + v * kWidth));
        sum[0][v] += a * x;
        sum[1][v] += b * x;
      }
    }
  }
}

// The same, added to rows of `dim` features in memory; `fresh` outputs start from zero. The second output may be
// the first again, when it has no neighbour. Rows of inputs are padded to whole registers.
inline void add_pair(const Inputs& inputs, int dim, const Pair& pair, float* out, float* other, bool fresh) {
  for_each_block<4>(padded(dim) / kWidth, [&](auto registers, int first) {
    constexpr int V = decltype(registers)::value;
    float *to = out + first * kWidth, *to_other = other + first * kWidth;
    const int width = dim - (first + V - 1) * kWidth;  // of the last register
    Vec sum[2][V] = {};
    if (!fresh) {
#pragma GCC unroll 4
      for (int v = 0; v < V - 1; ++v) sum[0][v] = load(to + v * kWidth), sum[1][v] = load(to_other + v * kWidth);
      sum[0][V - 1] = load_wide(to + (V - 1) * kWidth, width);
      sum[1][V - 1] = load_wide(to_other + (V - 1) * kWidth, width);
    }
    add_pair(inputs, first * kWidth, padded(dim), pair, sum);
#pragma GCC unroll 4
    for (int v = 0; v < V - 1; ++v) {
      store(to_other + v * kWidth, sum[1][v]);
      store(to + v * kWidth, sum[0][v]);
    }
    store_narrow(to_other + (V - 1) * kWidth, sum[1][V - 1], width);
    store_narrow(to + (V - 1) * kWidth, sum[0][V - 1], width);
  });
}

constexpr int kProductFloats = 5 << 10;  // inputs that one pass over the pairs of a block reads: 20 KB, to stay in L1

// out[row][lane][:] = sum over the window of weight * key row, for natural key rows of a ring.
inline void row_products(int features, const Block& block, const LaneTile& tile, const Ring& ring, const float* weights,
                         float* key_rows_base, float* out) {
  const int dim = padded(features);
  const int span = tile.columns + (tile.shifted ? kWidth - 1 : 0);
  const int step = min(max(1, kProductFloats / (span * dim)), kInputRows);
  bool fresh[kBlockRows] = {true, true, true, true};
  for (int z = block.keys[0].start; z < block.keys[0].stop; ++z)
    for (int first = block.keys[1].start; first < block.keys[1].stop; first += step) {
      const float* at = weights;
      for (int r = 0; r < block.count; at += ptrdiff_t{key_rows(block.row[r++])} * tile.pitch) {
        const QueryRow& row = block.row[r];
        Inputs inputs;
        inputs.rows = 0;
        for (int y = max(first, row.keys[1].start); y < min(first + step, row.keys[1].stop); ++y) {
          const int index = key_row_index(row, z, y);
          if (index < 0) break;
          inputs.input[inputs.rows] = natural_row(ring, key_rows_base, features, z, y);
          inputs.weight[inputs.rows++] = at + ptrdiff_t{index} * tile.pitch;
        }
        if (inputs.rows == 0) continue;
        float* to = out + int64_t{r} * kWidth * dim;
        for (int lane = 0; lane < tile.count; lane += 2) {
          const int other = min(lane + 1, tile.count - 1);
          add_pair(inputs, features, query_pair(tile, ring, lane, other), to + lane * dim, to + other * dim, fresh[r]);
        }
        fresh[r] = false;
      }
    }
}

// Two keys of a key row, seen by the lanes of a tile.
inline Pair key_pair(const LaneTile& tile, int first_lane, int stop_lane, int key, int other) {
  const ptrdiff_t column = tile.margin - tile.low - (tile.shifted ? tile.first + first_lane : 0);
  return {first_lane,
          stop_lane - first_lane,
          {(column + key) * kWidth + first_lane, (column + other) * kWidth + first_lane},
          tile.shifted ? 1 - kWidth : 1};
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

// A product of the transposed weights of a block: scores, the block's queries as rows [row][lane][dim], where the sums
// of the keys go.
struct KeySum {
  const float *scores, *rows;
  View<float> sums;
};

// Adds products to memory; nobody else adds to these keys meanwhile.
inline void add_key_sums(const Problem& p, const RowUnit& unit, const Block& block, const LaneTile& tile,
                         std::initializer_list<KeySum> products) {
  const auto key = [&](int lane, const int32_t* column) {
    return column[lane] + tile.low + (tile.shifted ? tile.first + lane : 0);
  };
  const int first_key = key(0, tile.start), last_key = key(tile.count - 1, tile.stop) - 1;
  for_each_key_row(block, tile, [&](int z, int y, const SeenBy& seen) {
    const int position[kAxes] = {z, y, first_key};
    const int64_t token = key_token(p, unit.tile, position);
    for (const KeySum& product : products) {
      const int dim = product.sums.dim;
      const int64_t step = p.axis[2].dilation * product.sums.stride;
      float* to = product.sums.base + token * product.sums.stride;
      Inputs inputs;
      inputs.rows = seen.count;
      for (int i = 0; i < seen.count; ++i) {
        inputs.input[i] = product.rows + int64_t{seen.row[i]} * kWidth * padded(dim);
        inputs.weight[i] = product.scores + seen.at[i];
      }
      int first = 0, stop = 0;  // lanes that see either key
      for (int k = first_key; k <= last_key; k += 2) {
        const int other = min(k + 1, last_key);
        while (first < tile.count && key(first, tile.stop) <= k) ++first;
        while (stop < tile.count && key(stop, tile.start) <= other) ++stop;
        if (first < stop)
          add_pair(inputs, dim, key_pair(tile, first, stop, k, other), to + (k - first_key) * step,
                   to + (other - first_key) * step, false);
      }
    }
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
