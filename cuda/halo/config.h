// SPDX-License-Identifier: Apache-2.0
// Which halo kernels exist, and the room that they need. Plain C++: the planner and the tests read it too.
//
// A block has a compact tile of rows and copies its halo, all columns that any of them sees, to shared memory at once.
// Each of its warps has a compact tile of 16 of the rows, and a box of the halo, all columns that any of these sees.
// Rows are queries and columns are keys; in the kernel of the gradients of keys and values it is the other way round.
#pragma once

#include <initializer_list>

#include "common/call/operands.h"
#include "common/isa.h"
#include "common/problem.h"
#include "cuda/fused/config.h"

namespace jax_na::cuda {

constexpr int kHaloWarps = 4, kHaloRows = 16 * kHaloWarps;
constexpr int kMostHaloFeatures = 128;
constexpr int kLongestHalo = 1024;  // along an axis: no more fit, and products of three are integers

// Neighbouring heads that are copied together, so that a row has 128 bytes at least: memory moves in lines of so many.
constexpr int halo_heads(int features) { return features == 32 ? 2 : 1; }
constexpr int halo_row_bytes(int features) { return 2 * features * halo_heads(features); }

// Columns that a warp scores at a time: its whole box where the registers have room for all scores, else a part of it.
constexpr int kMostWholeColumns = 104, kPartColumns = 96, kLongPartColumns = 128;
constexpr bool is_whole_box(int columns) { return columns != kPartColumns && columns != kLongPartColumns; }

// A mask has kernels of its own, because it costs registers, and few, because each takes its time to compile.
constexpr bool has_forward_shape(int features, int columns, bool has_mask) {
  if (has_mask) return columns == kMostWholeColumns || columns == kPartColumns;
  return columns != kLongPartColumns || features <= 64;
}
constexpr int halo_columns(int box_columns, int features, bool has_mask) {
  for (const int whole : {32, 64, kMostWholeColumns})
    if (box_columns <= whole && has_forward_shape(features, whole, has_mask)) return whole;
  const int in_parts = ceil_div(box_columns, kPartColumns) * kPartColumns;
  const int in_long_parts = ceil_div(box_columns, kLongPartColumns) * kLongPartColumns;
  const bool has_long_parts = has_forward_shape(features, kLongPartColumns, has_mask);
  return has_long_parts && in_long_parts <= in_parts ? kLongPartColumns : kPartColumns;
}

// Backward there are two scores of a pair, and no maximum that parts would have to correct. More columns at a time need
// more registers than there are beside the sums of wide rows or the bias.
constexpr int kFewColumns = 32, kMiddleColumns = 56, kManyColumns = 64;

// The pass of a kernel, whether the call has a bias, whose gradient is part of the queries' pass, and whether it has a
// mask of keys.
struct HaloUse {
  Pass pass;
  bool has_bias;
  bool has_mask = false;
};

constexpr bool adds_bias(const HaloUse& use) { return use.has_bias && use.pass == Pass::kBackwardQuery; }

// Sums of keys and of values take twice the registers that those of queries take.
constexpr int most_halo_features(Pass pass) { return pass == Pass::kBackwardKey ? 64 : kMostHaloFeatures; }

constexpr bool has_backward_shape(const HaloUse& use, int features, int columns) {
  if (features > most_halo_features(use.pass)) return false;
  if (columns == kFewColumns || use.has_mask) return columns == kFewColumns;
  if (use.pass == Pass::kBackwardKey) return columns == kMiddleColumns || features == 32;
  return columns == kMiddleColumns ? features <= 64 : features == 32 || (features == 64 && !use.has_bias);
}

// What a part costs beside its columns, in columns: more where large halos leave room for few blocks.
constexpr int kPartStart = 8, kLonePartStart = 24, kRoomOfThree = 64 << 10;
constexpr int halo_backward_columns(const HaloUse& use, int box_columns, double halo_bytes, int features) {
  const int start = halo_bytes <= kRoomOfThree ? kPartStart : kLonePartStart;
  int best = kFewColumns, least = 0;
  for (const int columns : {kFewColumns, kMiddleColumns, kManyColumns}) {
    if (!has_backward_shape(use, features, columns)) continue;
    const int cost = ceil_div(box_columns, columns) * (columns + start);
    if (least > 0 && cost >= least) continue;
    best = columns;
    least = cost;
  }
  return best;
}

// Blocks that a multiprocessor shall have registers for: several hide each other's copies. Where a box is not whole,
// halos are so large that there is no room for more anyway.
constexpr int halo_blocks(const HaloUse& use, int features, int columns, bool is_whole) {
  if (features >= 64) return features == 64 && (is_whole || columns == kFewColumns) ? 3 : 2;
  if (is_whole) return 4;
  return columns == kLongPartColumns || adds_bias(use) ? 2 : 3;
}

// One axis of a halo, and what stands before it in tables that have one axis after the other.
struct HaloAxis {
  int warp_tile;                  // rows of a warp
  int halo, box;                  // columns, at most
  int positions, lines, planes;   // before it: of tiles of rows, of halos, and of boxes with one more for each axis
  int row_stride, column_stride;  // between neighbours, in [tokens, heads] of the one and of the other side
  int bias_stride;
};

// Of a problem with a tile of rows.
struct HaloSizes {
  HaloAxis axis[kAxes];
  int halo_tokens, box_tokens;
  int inside;                    // columns of a box away from borders
  int columns, parts;            // of a box, of so many columns each
  int positions, lines, planes;  // of all axes
};

// Columns along an axis that so many neighbouring rows see, at most: keys of queries, or queries of keys. Tiles of rows
// begin at multiples of `step`.
constexpr int most_keys(const Axis& axis, int queries) {
  return min(ceil_div(axis.length, axis.dilation), axis.kernel_size + queries - 1 + axis.stride - 1);
}
constexpr int most_queries(const Axis& axis, int keys, int step) {
  const int size = axis.kernel_size, inside = size + keys - 1 + axis.stride - 1;
  int most = inside;
  for (const int length : {axis.length / axis.dilation, ceil_div(axis.length, axis.dilation)}) {
    const int last = length - size - keys;  // from there on tiles reach the keys that the last query sees
    for (int border = 0; border < 2; ++border)
      for (int key = border == 0 ? 0 : ceil_div(max(size, last), step) * step;
           key < (border == 0 ? min(size, length) : length); key += step) {
        const Range seen = tile_queries(axis, length, key, min(key + keys, length) - 1);
        most = max(most, seen.stop - seen.start);
      }
  }
  return min(ceil_div(axis.length, axis.dilation), most);
}

constexpr int most_seen(const Problem& problem, Pass pass, int a, int rows) {
  if (pass != Pass::kBackwardKey) return most_keys(problem.axis[a], rows);
  const bool is_region = problem.nk[a] < problem.axis[a].length;  // which can begin anywhere
  return most_queries(problem.axis[a], rows, is_region ? 1 : rows);
}

// The tile of a warp: what halving the longest extent again and again leaves.
constexpr void halve_for_warps(int (&tile)[kAxes]) {
  for (int warps = kHaloWarps; warps > 1; warps /= 2) {
    int longest = 0;
    for (int a = 1; a < kAxes; ++a)
      if (tile[a] > tile[longest]) longest = a;
    tile[longest] /= 2;
  }
}

// `tile` has kHaloRows tokens and powers of two as extents.
constexpr HaloSizes halo_sizes(const Problem& problem, const HaloUse& use, const int (&tile)[kAxes]) {
  const bool of_keys = use.pass == Pass::kBackwardKey;
  HaloSizes sizes{};
  int warp_tile[kAxes] = {tile[0], tile[1], tile[2]};
  halve_for_warps(warp_tile);
  sizes.halo_tokens = sizes.box_tokens = sizes.inside = 1;
  for (int a = 0; a < kAxes; ++a) {
    HaloAxis& axis = sizes.axis[a];
    axis.warp_tile = warp_tile[a];
    axis.halo = most_seen(problem, use.pass, a, tile[a]);
    axis.box = most_seen(problem, use.pass, a, warp_tile[a]);
    axis.positions = sizes.positions;
    axis.lines = sizes.lines;
    axis.planes = sizes.planes;
    sizes.positions += tile[a];
    sizes.lines += axis.halo;
    sizes.planes += axis.box + 1;
    sizes.halo_tokens *= axis.halo;
    sizes.box_tokens *= axis.box;
    sizes.inside *= most_keys(problem.axis[a], warp_tile[a]);
  }
  int queries = problem.heads, keys = problem.kv_heads;
  int64_t entries = 1;
  for (int a = kAxes - 1; a >= 0; --a) {
    HaloAxis& axis = sizes.axis[a];
    axis.row_stride = of_keys ? keys : queries;
    axis.column_stride = of_keys ? queries : keys;
    axis.bias_stride = static_cast<int>(entries);
    queries *= problem.nq[a];
    keys *= problem.nk[a];
    entries *= 2 * problem.axis[a].kernel_size - 1;
  }
  const int features = feature_bucket(problem.head_dim, problem.value_dim);
  const double bytes = 2. * sizes.halo_tokens * halo_row_bytes(features);
  sizes.columns = use.pass == Pass::kForward ? halo_columns(sizes.inside, features, use.has_mask)
                                             : halo_backward_columns(use, sizes.inside, bytes, features);
  sizes.parts = ceil_div(sizes.box_tokens, sizes.columns);
  return sizes;
}

// Places in shared memory: the halos of keys and of values (or of queries and of dO), then tables. Everything about a
// token is a product of its axes: where it is, whether it exists, what it sees. So the tables of a tile are made axis
// by axis, and put together where they are used. Those by position have the positions of the first axis, then of the
// second, then of the third.
struct HaloLayout {
  int second;        // the halo of values or dO, behind that of keys or queries
  int seen;          // uint32 [parts][positions][4]: columns that a position sees, as bits of those that a lane has
  int masks;         // uint32 [kHaloRows][4]: the same of a row, if its box is one part
  int below;         // uint32 [parts][planes][4]: columns before a plane of the box
  int room;          // for each warp, where rows are computed by their definition
  int suspects;      // int [kHaloWarps]: whether there are such rows
  int state;         // int [4]: of each axis
  int extents;       // HaloExtents of the tile, where halos of tiles differ
  int tokens;        // HaloToken [halo_tokens]
  int column_parts;  // int [lines]: what an axis adds to a column's place in [tokens, heads]
  int row_parts;     // int [positions]: the same for rows
  int boxes;         // int [positions]: where the box begins, in the halo
  int rows;          // int [kHaloRows]: place of a row in [tokens, heads], or negative
  int warps;         // HaloBox [kHaloWarps]
  int columns;       // int [parts * columns + 8]: bytes from a box's first column to its others
  int lse, delta;    // float [heads][halo_tokens], of queries that are columns
  int bias;          // float [heads][bias_entries], in the units of the exponents, if there is one
  int drpb;          // float [kHaloWarps][heads][halo_places][kHaloBiasCopies], where its gradient is added up
  int bias_columns;  // int [parts * columns]: what a column of the box adds to the entry of a pair
  int bias_parts;    // int [positions]: what an axis of the row adds
  int bias_rows;     // int [kHaloRows]: what a row adds
  int existing;      // uint32 [kHaloWarps][parts][4]: columns that exist, if they have a mask
  int bytes;
};

// What a tile's own halo and boxes have along each axis. Inverse windows are longer at borders: inside, less is scored
// than there is room for.
struct HaloExtents {
  int halo[kAxes], box[kAxes];
  int is_new[kAxes];  // another than those of the tile before
};

constexpr int kHaloSuspectRoom = 256;  // for a Problem
constexpr int kHaloBiasCopies = 8;     // of the table that a warp adds dS to: lanes that share a row have one

// Places of a table: behind the entries one for each lane that shares a row, for what is masked.
JAX_NA_HD constexpr int halo_places(int entries) { return entries + 4; }

// Of all tables that the warps of a block add dS to.
constexpr double halo_table_bytes(const Problem& problem) {
  double entries = 1;
  for (const Axis& axis : problem.axis) entries *= 2. * axis.kernel_size - 1;
  const int heads = halo_heads(feature_bucket(problem.head_dim, problem.value_dim));
  return 4. * kHaloWarps * kHaloBiasCopies * heads * (entries + 4);
}

constexpr HaloLayout halo_layout(const Problem& problem, const HaloSizes& sizes, const HaloUse& use) {
  constexpr int kWord = 4, kWords = 4 * kWord;
  const int columns = sizes.parts * sizes.columns, features = feature_bucket(problem.head_dim, problem.value_dim);
  const bool has_masks = use.pass == Pass::kForward && is_whole_box(sizes.columns);
  const int heads = halo_heads(features), table = kHaloBiasCopies * halo_places(bias_entries(problem)) * heads;
  const int statistics = use.pass == Pass::kBackwardKey ? heads * sizes.halo_tokens * kWord : 0;
  HaloLayout at{};
  at.second = sizes.halo_tokens * halo_row_bytes(features);
  at.seen = 2 * at.second;
  at.masks = at.seen + sizes.parts * sizes.positions * kWords;
  at.below = at.masks + (has_masks ? kHaloRows * kWords : 0);
  at.room = at.below + sizes.parts * sizes.planes * kWords;
  at.suspects = at.room + kHaloWarps * kHaloSuspectRoom;
  at.state = at.suspects + kHaloWarps * kWord;
  at.extents = at.state + 4 * kWord;
  at.tokens = at.extents + (use.pass == Pass::kBackwardKey ? (sizeof(HaloExtents) + 7) / 8 * 8 : 0);
  at.column_parts = at.tokens + sizes.halo_tokens * 2 * kWord;
  at.row_parts = at.column_parts + sizes.lines * kWord;
  at.boxes = at.row_parts + sizes.positions * kWord;
  at.rows = at.boxes + sizes.positions * kWord;
  at.warps = at.rows + kHaloRows * kWord;
  at.columns = (at.warps + kHaloWarps * 2 * kWord + kWords - 1) / kWords * kWords;  // read in pairs
  at.lse = at.columns + (columns + 8) * kWord;
  at.delta = at.lse + statistics;
  at.bias_columns = at.delta + statistics;
  at.bias_columns = (at.bias_columns + kWords - 1) / kWords * kWords;  // read in pairs
  at.bias_parts = at.bias_columns + (use.has_bias ? columns * kWord : 0);
  at.bias_rows = at.bias_parts + (use.has_bias ? sizes.positions * kWord : 0);
  at.bias = at.bias_rows + (use.has_bias ? kHaloRows * kWord : 0);
  at.drpb = at.bias + (use.has_bias ? heads * bias_entries(problem) * kWord : 0);
  at.bytes = at.drpb + (adds_bias(use) ? kHaloWarps * table * kWord : 0);
  at.existing = at.bytes;
  at.bytes += use.has_mask && use.pass != Pass::kBackwardKey ? kHaloWarps * sizes.parts * kWords : 0;
  return at;
}

}  // namespace jax_na::cuda
