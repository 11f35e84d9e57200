// SPDX-License-Identifier: Apache-2.0
// Weights of a tile are dense, [visited tokens][kLanes]; between that form and the rows of weights in memory,
// [tokens][heads][pitch], they are scattered (qk) or gathered (av, inverse).
#pragma once

#include <stdint.h>
#include <string.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cpu/host/kernels.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/tile.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

inline float* weights_row(const UnfusedArgs& args, int64_t batch, int64_t token, int head) {
  const Problem& problem = args.problem;
  const int64_t row = (batch * query_tokens(problem) + token) * problem.heads + head;
  return static_cast<float*>(args.weights) + row * problem.pitch;
}

// Part of a segment that lies in the lane's window, and the slot of its first key; empty when count <= 0.
struct Overlap {
  int first, count, slot;
};

inline Overlap overlap(const Problem& problem, const Lanes& lanes, int lane, const Segment& segment) {
  const int z = segment.position[0] - lanes.start[0][lane], y = segment.position[1] - lanes.start[1][lane];
  if (z < 0 || y < 0 || segment.position[0] >= lanes.stop[0][lane] || segment.position[1] >= lanes.stop[1][lane])
    return {0, 0, 0};
  const int x = segment.position[2];
  const int start = max(lanes.start[2][lane], x), stop = min(lanes.stop[2][lane], x + segment.count);
  const int row = z * problem.axis[1].kernel_size + y;
  return {start - x, stop - start, row * problem.axis[2].kernel_size + start - lanes.start[2][lane]};
}

// What kWidth lanes from `first_lane` on see of a segment. Returns the keys of it that all of them see, cut to whole
// squares of kWidth keys and kWidth lanes.
inline Range overlap_lanes(const Problem& problem, const Lanes& lanes, const Segment& segment, int first_lane,
                           Overlap (&seen)[kWidth]) {
  int start = 0, stop = segment.count;
  for (int i = 0; i < kWidth; ++i) {
    seen[i] = overlap(problem, lanes, first_lane + i, segment);
    if (!lanes.valid[first_lane + i]) continue;
    start = max(start, seen[i].first);
    stop = min(stop, seen[i].first + max(seen[i].count, 0));
  }
  return {start, start + max(stop - start, 0) / kWidth * kWidth};
}

// Calls body(lane, key, slot, count) for what a lane sees of a segment before and after the squares; `key` is the
// segment's first among those of the chunk.
template <class Body>
inline void visit_beside(const Overlap& seen, Range squares, int lane, int key, const Body& body) {
  const int stop = seen.first + seen.count;
  if (squares.start == squares.stop) {
    body(lane, key + seen.first, seen.slot, seen.count);
  } else {
    body(lane, key + seen.first, seen.slot, squares.start - seen.first);
    body(lane, key + squares.stop, seen.slot + squares.stop - seen.first, stop - squares.stop);
  }
}

// Calls body(lane, key of the chunk, slot, count) for the keys of every lane that exists, but square(first lane, key,
// slots) for squares of kWidth keys and kWidth lanes that lie in the windows of all of them: those can be transposed.
template <class Body, class Square>
inline void for_each_overlap(const Problem& problem, const Lanes& lanes, const BoxChunk& chunk, const Body& body,
                             const Square& square) {
  int key = 0;
  for (int segment = 0; segment < chunk.segments; ++segment) {
    for (int first = 0; first < kLanes; first += kWidth) {
      Overlap seen[kWidth];
      const Range squares = overlap_lanes(problem, lanes, chunk.segment[segment], first, seen);
      for (int at = squares.start; at < squares.stop; at += kWidth) {
        int slots[kWidth];
        for (int i = 0; i < kWidth; ++i) slots[i] = seen[i].slot + at - seen[i].first;
        square(first, key + at, slots);
      }
      for (int i = 0; i < kWidth; ++i)
        if (lanes.valid[first + i] && seen[i].count > 0) visit_beside(seen[i], squares, first + i, key, body);
    }
    key += chunk.segment[segment].count;
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

// Scores of a chunk to the rows of the lanes.
inline void scatter_weights(const UnfusedArgs& args, const Tile& tile, const Lanes& lanes, const BoxChunk& chunk,
                            const float* scores) {
  const LaneRows rows = lane_rows(args, tile, lanes);
  for_each_overlap(
      args.problem, lanes, chunk,
      [&](int lane, int key, int slot, int count) {
        for (int i = 0; i < count; ++i) rows.row[lane][slot + i] = scores[(key + i) * kLanes + lane];
      },
      [&](int first, int key, const int* slots) {
        Vec square[kWidth];
        for (int i = 0; i < kWidth; ++i) square[i] = load(scores + (key + i) * kLanes + first);
        transpose(square);
        for (int i = 0; i < kWidth; ++i)
          if (lanes.valid[first + i]) store(rows.row[first + i] + slots[i], square[i]);
      });
}

// The rows of the lanes to scores of a chunk; zero where a lane does not see a key.
inline void gather_weights(const UnfusedArgs& args, const Tile& tile, const Lanes& lanes, const BoxChunk& chunk,
                           float* scores) {
  memset(scores, 0, chunk.keys * kLanes * sizeof(float));
  const LaneRows rows = lane_rows(args, tile, lanes);
  for_each_overlap(
      args.problem, lanes, chunk,
      [&](int lane, int key, int slot, int count) {
        for (int i = 0; i < count; ++i) scores[(key + i) * kLanes + lane] = rows.row[lane][slot + i];
      },
      [&](int first, int key, const int* slots) {
        Vec square[kWidth];
        for (int i = 0; i < kWidth; ++i)
          square[i] = lanes.valid[first + i] ? load(rows.row[first + i] + slots[i]) : Vec{};
        transpose(square);
        for (int i = 0; i < kWidth; ++i) store(scores + (key + i) * kLanes + first, square[i]);
      });
}

// The weights that one query gives to the lanes, which are keys; `row` are the query's weights.
inline void gather_query(const Problem& problem, const Tile& tile, const Lanes& lanes, const int (&query)[kAxes],
                         const float* row, float* scores) {
  int start[kAxes];
  for (int axis = 0; axis < kAxes; ++axis)
    start[axis] = window(problem.axis[axis], tile.group[axis].length, query[axis]).start;
  for (int lane = 0; lane < kLanes; ++lane) {
    bool seen = true;
    int slot = 0;
    for (int axis = 0; axis < kAxes; ++axis) {
      seen &= lanes.start[axis][lane] <= query[axis] && query[axis] < lanes.stop[axis][lane];
      slot = slot * problem.axis[axis].kernel_size + lanes.position[axis][lane] - start[axis];
    }
    scores[lane] = seen ? row[slot] : 0.0f;
  }
}

// The lanes are keys, the visited tokens queries: each query's row gives one weight to every lane it sees.
inline void gather_weights_inverse(const UnfusedArgs& args, const Tile& tile, int head, const Lanes& lanes,
                                   const BoxChunk& chunk, float* scores) {
  for (int i = 0; i < chunk.segments; ++i) {
    const Segment& segment = chunk.segment[i];
    for (int j = 0; j < segment.count; ++j, scores += kLanes) {
      const int query[kAxes] = {segment.position[0], segment.position[1], segment.position[2] + j};
      const float* row = weights_row(args, tile.batch, query_token(args.problem, tile, query), head);
      gather_query(args.problem, tile, lanes, query, row, scores);
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
