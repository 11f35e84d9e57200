// SPDX-License-Identifier: Apache-2.0
// What the fused kernels do to a chunk of scores between the matrix products: bias, mask, exponentials.
// Scores are in units of log 2 throughout: the factor log2(e) is folded into the packed queries.
#pragma once

#include "cpu/tiles/panel.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kLowest = -1e30f;  // finite, so that (-inf) - kLowest is still -inf

// From dot products to scores.
inline float score_factor(const Problem& p) { return static_cast<float>(p.scale) * kLog2E; }

// Relative positional bias of one head: the entry of (key k, query q) along an axis is k - q + kernel_size - 1.
struct BiasTable {
  const float* entries;
  int extent[kAxes];  // 2 * kernel_size - 1
};

inline BiasTable make_bias_table(const Problem& p, const float* rpb, int head) {
  if (rpb == nullptr) return {nullptr, {0, 0, 0}};
  return {rpb + int64_t{head} * bias_entries(p),
          {2 * p.axis[0].kernel_size - 1, 2 * p.axis[1].kernel_size - 1, 2 * p.axis[2].kernel_size - 1}};
}

// The entry for a key at this distance from its query; null without a bias.
inline const float* bias_entry(const BiasTable& table, int z, int y, int x) {
  if (table.entries == nullptr) return nullptr;
  return table.entries + ((z + table.extent[0] / 2) * table.extent[1] + y + table.extent[1] / 2) * table.extent[2] + x +
         table.extent[2] / 2;
}

// Index of the entry for the key at `position` along one axis, clamped: masked pairs may lie outside the table.
inline IntVec bias_index(const BiasTable& table, const Lanes& lanes, int axis, int position, int vec) {
  const int extent = table.extent[axis];
  const IntVec index = splat(position + extent / 2) - load(lanes.position[axis] + vec * kWidth);
  return vmin(vmax(index, IntVec{}), splat(extent - 1));
}

// Calls body(index of key in chunk, vec, flat index into the table) for every key and register of lanes.
template <class Body>
inline void for_each_bias(const BiasTable& table, const Lanes& lanes, const Chunk& chunk, const Body& body) {
  int key = 0;
  for (int i = 0; i < chunk.segments; ++i) {
    const Segment& segment = chunk.segment[i];
    for (int v = 0; v < kVecs; ++v) {
      const IntVec row = (bias_index(table, lanes, 0, segment.position[0], v) * table.extent[1] +
                          bias_index(table, lanes, 1, segment.position[1], v)) *
                         table.extent[2];
      for (int j = 0; j < segment.count; ++j)
        body(key + j, v, row + bias_index(table, lanes, 2, segment.position[2] + j, v));
    }
    key += segment.count;
  }
}

inline void add_bias(const BiasTable& table, const Lanes& lanes, const Chunk& chunk, float* scores) {
  for_each_bias(table, lanes, chunk, [&](int key, int v, IntVec index) {
    Vec bias;
    for (int l = 0; l < kWidth; ++l) bias[l] = table.entries[index[l]];
    float* s = scores + key * kLanes + v * kWidth;
    store(s, load(s) + bias * splat(kLog2E));
  });
}

// The transpose of add_bias: sums ds into the table's gradient.
inline void add_bias_gradient(const BiasTable& table, const Lanes& lanes, const Chunk& chunk, const float* ds,
                              float* gradient) {
  for_each_bias(table, lanes, chunk, [&](int key, int v, IntVec index) {
    for (int l = 0; l < kWidth; ++l) gradient[index[l]] += ds[key * kLanes + v * kWidth + l];
  });
}

inline IntVec inside(int position, const Lanes& lanes, int axis, int vec) {
  const IntVec x = splat(position);
  return (x >= load(lanes.start[axis] + vec * kWidth)) & (x < load(lanes.stop[axis] + vec * kWidth));
}

// -inf where a key is outside a lane's window (segments inside every window are left alone); maximum of each lane.
inline void mask_scores(const Lanes& lanes, const Chunk& chunk, float* scores, float* maximum) {
  for (int v = 0; v < kVecs; ++v) {
    float* s = scores + v * kWidth;
    Vec m = splat(kLowest);
    for (int i = 0; i < chunk.segments; ++i) {
      const Segment& segment = chunk.segment[i];
      if (segment.inner) {
        for (int j = 0; j < segment.count; ++j, s += kLanes) m = vmax(m, load(s));
        continue;
      }
      const IntVec row = inside(segment.position[0], lanes, 0, v) & inside(segment.position[1], lanes, 1, v);
      for (int j = 0; j < segment.count; ++j, s += kLanes) {
        const Vec score = select(row & inside(segment.position[2] + j, lanes, 2, v), load(s), splat(-INFINITY));
        store(s, score);
        m = vmax(m, score);
      }
    }
    store(maximum + v * kWidth, m);
  }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
