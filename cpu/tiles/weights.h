// SPDX-License-Identifier: Apache-2.0
// Weights of a tile are dense, [visited tokens][kLanes]; between that form and the rows of weights in memory,
// [tokens][heads][pitch], they are scattered (qk) or gathered (av, inverse).
#pragma once

#include "cpu/tiles/panel.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

inline float* weights_row(const UnfusedArgs& args, int64_t batch, int64_t token, int head) {
  const Problem& p = args.problem;
  return static_cast<float*>(args.weights) + ((batch * query_tokens(p) + token) * p.heads + head) * p.pitch;
}

// Part of a segment that lies in the lane's window, and the slot of its first key; empty when count <= 0.
struct Overlap {
  int first, count, slot;
};

inline Overlap overlap(const Problem& p, const Lanes& lanes, int lane, const Segment& segment) {
  const int z = segment.position[0] - lanes.start[0][lane], y = segment.position[1] - lanes.start[1][lane];
  if (z < 0 || y < 0 || segment.position[0] >= lanes.stop[0][lane] || segment.position[1] >= lanes.stop[1][lane])
    return {0, 0, 0};
  const int x = segment.position[2];
  const int start = max(lanes.start[2][lane], x), stop = min(lanes.stop[2][lane], x + segment.count);
  const int slot = (z * p.axis[1].kernel_size + y) * p.axis[2].kernel_size + start - lanes.start[2][lane];
  return {start - x, stop - start, slot};
}

// Calls body(lane, key of the chunk, slot, count) for the keys of every lane that exists, but square(first lane, key,
// slots) for squares of kWidth keys and kWidth lanes that lie in the windows of all of them: those can be transposed.
template <class Body, class Square>
inline void for_each_overlap(const Problem& p, const Lanes& lanes, const Chunk& chunk, const Body& body,
                             const Square& square) {
  int key = 0;
  for (int i = 0; i < chunk.segments; key += chunk.segment[i++].count)
    for (int first = 0; first < kLanes; first += kWidth) {
      Overlap overlaps[kWidth];
      int start = 0, stop = chunk.segment[i].count;  // keys that all lanes see
      for (int l = 0; l < kWidth; ++l) {
        overlaps[l] = overlap(p, lanes, first + l, chunk.segment[i]);
        if (!lanes.valid[first + l]) continue;
        start = max(start, overlaps[l].first);
        stop = min(stop, overlaps[l].first + max(overlaps[l].count, 0));
      }
      const int squares = max(stop - start, 0) / kWidth;
      stop = start + squares * kWidth;
      for (int k = start; k < stop; k += kWidth) {
        int slots[kWidth];
        for (int l = 0; l < kWidth; ++l) slots[l] = overlaps[l].slot + k - overlaps[l].first;
        square(first, key + k, slots);
      }
      for (int l = 0; l < kWidth; ++l) {
        const Overlap& o = overlaps[l];
        if (!lanes.valid[first + l] || o.count <= 0) continue;
        const int end = o.first + o.count;
        if (squares == 0) {
          body(first + l, key + o.first, o.slot, o.count);
        } else {
          body(first + l, key + o.first, o.slot, start - o.first);
          body(first + l, key + stop, o.slot + stop - o.first, end - stop);
        }
      }
    }
}

// The rows of weights of all lanes; lanes that do not exist repeat the last.
struct LaneRows {
  float* row[kLanes];
};
inline LaneRows lane_rows(const UnfusedArgs& args, const Tile& tile, const Lanes& lanes) {
  LaneRows rows;
  for (int lane = 0; lane < kLanes; ++lane)
    rows.row[lane] = weights_row(args, tile.batch, lanes.token[lane], tile.head);
  return rows;
}

inline void scatter_weights(const UnfusedArgs& args, const Tile& tile, const Lanes& lanes, const Chunk& chunk,
                            const float* scores) {
  const LaneRows rows = lane_rows(args, tile, lanes);
  for_each_overlap(
      args.problem, lanes, chunk,
      [&](int lane, int key, int slot, int count) {
        for (int j = 0; j < count; ++j) rows.row[lane][slot + j] = scores[(key + j) * kLanes + lane];
      },
      [&](int first, int key, const int* slots) {
        Vec block[kWidth];
        for (int j = 0; j < kWidth; ++j) block[j] = load(scores + (key + j) * kLanes + first);
        transpose(block);
        for (int l = 0; l < kWidth; ++l)
          if (lanes.valid[first + l]) store(rows.row[first + l] + slots[l], block[l]);
      });
}

inline void gather_weights(const UnfusedArgs& args, const Tile& tile, const Lanes& lanes, const Chunk& chunk,
                           float* scores) {
  memset(scores, 0, chunk.keys * kLanes * sizeof(float));
  const LaneRows rows = lane_rows(args, tile, lanes);
  for_each_overlap(
      args.problem, lanes, chunk,
      [&](int lane, int key, int slot, int count) {
        for (int j = 0; j < count; ++j) scores[(key + j) * kLanes + lane] = rows.row[lane][slot + j];
      },
      [&](int first, int key, const int* slots) {
        Vec block[kWidth];
        for (int l = 0; l < kWidth; ++l)
          block[l] = lanes.valid[first + l] ? load(rows.row[first + l] + slots[l]) : Vec{};
        transpose(block);
        for (int j = 0; j < kWidth; ++j) store(scores + (key + j) * kLanes + first, block[j]);
      });
}

// The lanes are keys, the visited tokens queries: each query's row gives one weight to every lane it sees.
inline void gather_weights_inverse(const UnfusedArgs& args, const Tile& tile, int head, const Lanes& lanes,
                                   const Chunk& chunk, float* scores) {
  const Problem& p = args.problem;
  for (int i = 0; i < chunk.segments; ++i)
    for (int j = 0; j < chunk.segment[i].count; ++j, scores += kLanes) {
      int query[kAxes], start[kAxes];
      for (int a = 0; a < kAxes; ++a) {
        query[a] = chunk.segment[i].position[a] + (a == kAxes - 1 ? j : 0);
        start[a] = window(p.axis[a], tile.group[a].length, query[a]).start;
      }
      const float* row = weights_row(args, tile.batch, query_token(p, tile, query), head);
      for (int lane = 0; lane < kLanes; ++lane) {
        bool seen = true;
        int slot = 0;
        for (int a = 0; a < kAxes; ++a) {
          seen &= lanes.start[a][lane] <= query[a] && query[a] < lanes.stop[a][lane];
          slot = slot * p.axis[a].kernel_size + lanes.position[a][lane] - start[a];
        }
        scores[lane] = seen ? row[slot] : 0.0f;
      }
    }
}

inline void clear_rows(const UnfusedArgs& args, const Tile& tile, const Lanes& lanes) {
  for (int lane = 0; lane < kLanes; ++lane)
    if (lanes.valid[lane])
      memset(weights_row(args, tile.batch, lanes.token[lane], tile.head), 0, args.problem.pitch * sizeof(float));
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
