// SPDX-License-Identifier: Apache-2.0
// Which halo kernels exist, and the room that they need. Plain C++: the planner and the tests read it too.
//
// A block has a compact tile of queries and copies its halo, all keys that any of them sees, to shared memory at once.
// Each of its warps has a compact tile of 16 of the queries, and a box of the halo, all keys that any of these sees.
#pragma once

#include <initializer_list>

#include "common/problem.h"
#include "cuda/fused/config.h"

namespace jax_na::cuda {

constexpr int kHaloWarps = 4, kHaloRows = 16 * kHaloWarps;
constexpr int kMostHaloFeatures = 128;
constexpr int kLongestHalo = 1024;  // along an axis: no more fit, and products of three are integers

// Neighbouring heads that are copied together, so that a row has 128 bytes at least: memory moves in lines of so many.
constexpr int halo_heads(int features) { return features == 32 ? 2 : 1; }
constexpr int halo_row_bytes(int features) { return 2 * features * halo_heads(features); }

// Keys that a warp scores at a time: its whole box where the registers have room for all scores, else a part of it.
constexpr int kMostWholeKeys = 104, kPartKeys = 96, kLongPartKeys = 128;
constexpr bool is_whole_box(int columns) { return columns != kPartKeys && columns != kLongPartKeys; }
constexpr bool has_long_parts(int features) { return features <= 64; }
constexpr int halo_columns(int box_keys, int features) {
  for (const int whole : {32, 64, kMostWholeKeys})
    if (box_keys <= whole) return whole;
  const int in_parts = ceil_div(box_keys, kPartKeys) * kPartKeys;
  const int in_long_parts = ceil_div(box_keys, kLongPartKeys) * kLongPartKeys;
  return has_long_parts(features) && in_long_parts <= in_parts ? kLongPartKeys : kPartKeys;
}

// Blocks that a multiprocessor shall have registers for. Where a box is not whole, halos leave no room for more anyway.
constexpr int halo_blocks(int features, int columns) {
  if (features == 32) return is_whole_box(columns) ? 4 : columns == kPartKeys ? 3 : 2;
  return features == 64 && is_whole_box(columns) ? 3 : 2;
}

// One axis of a halo, and what stands before it in tables that have one axis after the other.
struct HaloAxis {
  int warp_tile;                 // queries of a warp
  int halo, box;                 // keys, at most
  int positions, lines, planes;  // before it: of tiles of queries, of halos, and of boxes with one more for each axis
  int query_stride, key_stride;  // between neighbours, in [tokens, heads] and [tokens, kv_heads]
  int bias_stride;
};

// Of a problem with a tile of queries.
struct HaloSizes {
  HaloAxis axis[kAxes];
  int halo_tokens, box_tokens;
  int columns, parts;            // of a box, of so many keys each
  int positions, lines, planes;  // of all axes
};

// Keys along an axis that so many neighbouring queries see, at most.
constexpr int most_seen(const Axis& axis, int queries) {
  return min(ceil_div(axis.length, axis.dilation), axis.kernel_size + queries - 1 + axis.stride - 1);
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
constexpr HaloSizes halo_sizes(const Problem& problem, const int (&tile)[kAxes]) {
  HaloSizes sizes{};
  int warp_tile[kAxes] = {tile[0], tile[1], tile[2]};
  halve_for_warps(warp_tile);
  sizes.halo_tokens = sizes.box_tokens = 1;
  for (int a = 0; a < kAxes; ++a) {
    HaloAxis& axis = sizes.axis[a];
    axis.warp_tile = warp_tile[a];
    axis.halo = most_seen(problem.axis[a], tile[a]);
    axis.box = most_seen(problem.axis[a], warp_tile[a]);
    axis.positions = sizes.positions;
    axis.lines = sizes.lines;
    axis.planes = sizes.planes;
    sizes.positions += tile[a];
    sizes.lines += axis.halo;
    sizes.planes += axis.box + 1;
    sizes.halo_tokens *= axis.halo;
    sizes.box_tokens *= axis.box;
  }
  int queries = problem.heads, keys = problem.kv_heads, entries = 1;
  for (int a = kAxes - 1; a >= 0; --a) {
    HaloAxis& axis = sizes.axis[a];
    axis.query_stride = queries;
    axis.key_stride = keys;
    axis.bias_stride = entries;
    queries *= problem.nq[a];
    keys *= problem.nk[a];
    entries *= 2 * problem.axis[a].kernel_size - 1;
  }
  sizes.columns = halo_columns(sizes.box_tokens, feature_bucket(problem.head_dim, problem.value_dim));
  sizes.parts = ceil_div(sizes.box_tokens, sizes.columns);
  return sizes;
}

// Places in shared memory: the halos of keys and of values, then tables. Everything about a token is a product of its
// axes: where it is, whether it exists, which keys it sees. So the tables of a tile are made axis by axis, and put
// together where they are used. Those by position have the positions of the first axis, then of the second, then of
// the third.
struct HaloLayout {
  int value;         // of the halo of values, behind that of the keys
  int seen;          // uint32 [parts][positions][4]: keys that a position sees, as bits of those that a lane has
  int masks;         // uint32 [kHaloRows][4]: the same of a row, if its box is one part
  int below;         // uint32 [parts][planes][4]: keys before a plane of the box
  int room;          // for each warp, where rows are computed by their definition
  int suspects;      // int [kHaloWarps]: whether there are such rows
  int state;         // int [4]: of each axis
  int tokens;        // HaloToken [halo_tokens]
  int key_parts;     // int [lines]: what an axis adds to a key's row
  int query_parts;   // int [positions]: the same for [tokens, heads]
  int boxes;         // int [positions]: where the box begins, in the halo
  int query_rows;    // int [kHaloRows]: row of a query in [tokens, heads], or negative
  int warps;         // HaloBox [kHaloWarps]
  int rows;          // int [parts * columns + 8]: bytes from a box's first key to its others
  int bias;          // float [heads][bias_entries], in the units of the exponents, if there is one
  int bias_keys;     // int [parts * columns]: what a key of the box adds to the entry of a pair
  int bias_queries;  // int [positions]: what an axis of the query adds
  int bias_rows;     // int [kHaloRows]: what a query adds
  int bytes;
};

constexpr int kHaloSuspectRoom = 256;  // for a Problem

constexpr HaloLayout halo_layout(const Problem& problem, const HaloSizes& sizes, int features, bool has_bias) {
  constexpr int kWord = 4, kWords = 4 * kWord;
  const int keys = sizes.parts * sizes.columns;
  HaloLayout at{};
  at.value = sizes.halo_tokens * halo_row_bytes(features);
  at.seen = 2 * at.value;
  at.masks = at.seen + sizes.parts * sizes.positions * kWords;
  at.below = at.masks + (is_whole_box(sizes.columns) ? kHaloRows * kWords : 0);
  at.room = at.below + sizes.parts * sizes.planes * kWords;
  at.suspects = at.room + kHaloWarps * kHaloSuspectRoom;
  at.state = at.suspects + kHaloWarps * kWord;
  at.tokens = at.state + 4 * kWord;
  at.key_parts = at.tokens + sizes.halo_tokens * 2 * kWord;
  at.query_parts = at.key_parts + sizes.lines * kWord;
  at.boxes = at.query_parts + sizes.positions * kWord;
  at.query_rows = at.boxes + sizes.positions * kWord;
  at.warps = at.query_rows + kHaloRows * kWord;
  at.rows = at.warps + kHaloWarps * 2 * kWord;
  at.bias_keys = at.rows + (keys + 8) * kWord;
  at.bias_keys = (at.bias_keys + kWords - 1) / kWords * kWords;  // read in pairs
  at.bias_queries = at.bias_keys + (has_bias ? keys * kWord : 0);
  at.bias_rows = at.bias_queries + (has_bias ? sizes.positions * kWord : 0);
  at.bias = at.bias_rows + (has_bias ? kHaloRows * kWord : 0);
  at.bytes = at.bias + (has_bias ? halo_heads(features) * bias_entries(problem) * kWord : 0);
  return at;
}

}  // namespace jax_na::cuda
