// SPDX-License-Identifier: Apache-2.0
// What the fused kernels do to a chunk of scores between the matrix products: bias, masks, exponentials.
// Scores are in units of log 2 throughout: the factor log2(e) is folded into the packed queries.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "cpu/host/kernels.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/panel.h"
#include "cpu/tiles/tile.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kLowest = -3.4028235e38f;  // of all finite scores; finite, so that (-inf) - kLowest is still -inf

// From dot products to scores.
inline float score_factor(const Problem& problem) { return static_cast<float>(problem.scale) * kLog2E; }

// Relative positional bias of one head: along an axis, the entry of (key k, query q) is k - q + kernel_size - 1, the
// middle one for a query's own key.
struct BiasTable {
  const float* entries;
  int extent[kAxes];  // 2 * kernel_size - 1
};

inline BiasTable make_bias_table(const Problem& problem, const float* rpb, int head) {
  if (rpb == nullptr) return {nullptr, {0, 0, 0}};
  const auto extent = [&](int axis) { return 2 * problem.axis[axis].kernel_size - 1; };
  return {rpb + int64_t{head} * bias_entries(problem), {extent(0), extent(1), extent(2)}};
}

// The entry for a key at this distance from its query; null without a bias.
inline const float* bias_entry(const BiasTable& table, int z, int y, int x) {
  if (table.entries == nullptr) return nullptr;
  const int (&extent)[kAxes] = table.extent;
  const int row = (z + extent[0] / 2) * extent[1] + y + extent[1] / 2;
  return table.entries + row * extent[2] + x + extent[2] / 2;
}

// Index of the entry for the key at `position` along one axis, clamped: masked pairs may lie outside the table.
inline IntVec bias_index(const BiasTable& table, const Lanes& lanes, int axis, int position, int vec) {
  const int extent = table.extent[axis];
  const IntVec index = splat(position + extent / 2) - load(lanes.position[axis] + vec * kWidth);
  return vmin(vmax(index, IntVec{}), splat(extent - 1));
}

// Calls body(index of key in chunk, vec, flat index into the table) for every key and register of lanes.
template <class Body>
inline void for_each_bias(const BiasTable& table, const Lanes& lanes, const BoxChunk& chunk, const Body& body) {
  int key = 0;
  for (int i = 0; i < chunk.segments; ++i) {
    const Segment& segment = chunk.segment[i];
    for (int vec = 0; vec < kVecs; ++vec) {
      const IntVec row = (bias_index(table, lanes, 0, segment.position[0], vec) * table.extent[1] +
                          bias_index(table, lanes, 1, segment.position[1], vec)) *
                         table.extent[2];
      for (int j = 0; j < segment.count; ++j)
        body(key + j, vec, row + bias_index(table, lanes, 2, segment.position[2] + j, vec));
    }
    key += segment.count;
  }
}

inline void add_bias(const BiasTable& table, const Lanes& lanes, const BoxChunk& chunk, float* scores) {
  for_each_bias(table, lanes, chunk, [&](int key, int vec, IntVec index) {
    Vec bias;
    for (int lane = 0; lane < kWidth; ++lane) bias[lane] = table.entries[index[lane]];
    float* score = scores + key * kLanes + vec * kWidth;
    store(score, load(score) + bias * splat(kLog2E));
  });
}

// The transpose of add_bias: sums the gradients of the scores into that of the table.
inline void add_bias_gradient(const BiasTable& table, const Lanes& lanes, const BoxChunk& chunk, const float* dscores,
                              float* drpb) {
  for_each_bias(table, lanes, chunk, [&](int key, int vec, IntVec index) {
    const float* gradient = dscores + key * kLanes + vec * kWidth;
    for (int lane = 0; lane < kWidth; ++lane) drpb[index[lane]] += gradient[lane];
  });
}

inline IntVec inside(int position, const Lanes& lanes, int axis, int vec) {
  const IntVec key = splat(position);
  return (key >= load(lanes.start[axis] + vec * kWidth)) & (key < load(lanes.stop[axis] + vec * kWidth));
}

// The mask of the keys of one batch entry; null without one.
inline const uint8_t* mask_of_batch(const Problem& problem, const uint8_t* mask, int64_t batch) {
  return mask == nullptr ? nullptr : mask + batch * key_tokens(problem);
}

// -inf for the keys of a chunk that are masked.
inline void hide_keys(const VisitedTokens<Side::kQueries>& visited, const uint8_t* mask, const BoxChunk& chunk,
                      float* scores) {
  const int64_t step = token_step(visited);
  for (int i = 0; i < chunk.segments; ++i) {
    const Segment& segment = chunk.segment[i];
    const uint8_t* exists = mask + token_at(visited, segment.position);
    const int count = real_tokens(visited.panel, segment);
    for (int j = 0; j < count; ++j)
      if (exists[j * step] == 0)
        for (int lane = 0; lane < kLanes; ++lane) scores[j * kLanes + lane] = -INFINITY;
    scores += segment.count * kLanes;
  }
}

// -inf where a key is outside a lane's window (segments inside every window are left alone); maximum of each lane.
inline void mask_scores(const Lanes& lanes, const BoxChunk& chunk, float* scores, float* maximum) {
  for (int vec = 0; vec < kVecs; ++vec) {
    float* at = scores + vec * kWidth;
    Vec largest = splat(kLowest);
    for (int i = 0; i < chunk.segments; ++i) {
      const Segment& segment = chunk.segment[i];
      if (segment.inner) {
        for (int j = 0; j < segment.count; ++j, at += kLanes) largest = vmax(largest, load(at));
        continue;
      }
      const IntVec row = inside(segment.position[0], lanes, 0, vec) & inside(segment.position[1], lanes, 1, vec);
      for (int j = 0; j < segment.count; ++j, at += kLanes) {
        const IntVec seen = row & inside(segment.position[2] + j, lanes, 2, vec);
        const Vec score = select(seen, load(at), splat(-INFINITY));
        store(at, score);
        largest = vmax(largest, score);
      }
    }
    store(maximum + vec * kWidth, largest);
  }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
