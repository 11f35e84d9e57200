// SPDX-License-Identifier: Apache-2.0
// Softmax over rows of scores, one row per query and head; may work in place.
//
//   weights[j] = exp(scale scores[j] - m) / l;   lse = m + log l
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/isa.h"
#include "cpu/host/kernels.h"
#include "cpu/simd/convert.h"
#include "cpu/simd/parallel.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/scores.h"
#include "cpu/tiles/tile.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// The scaled scores from a slot on, -inf where there is no slot.
inline Vec slots_from(const SoftmaxArgs& args, const float* row, int first) {
  if (first + kWidth <= args.slots) return load(row + first) * splat(args.scale);
  Vec scores = splat(-INFINITY);
  for (int i = 0; i < args.slots - first; ++i) scores[i] = row[first + i] * args.scale;
  return scores;
}

// In natural units up to the difference with the maximum: finite scores of any size have finite weights. A row without
// a key has weights of zero.
inline void softmax_row(const SoftmaxArgs& args, const float* scores, float* weights, float* lse) {
  Vec largest = splat(kLowest);
  for (int slot = 0; slot < args.slots; slot += kWidth) largest = vmax(largest, slots_from(args, scores, slot));
  const float maximum = max_lanes(largest);
  Vec total = {};
  for (int slot = 0; slot < args.pitch; slot += kWidth) {
    const Vec weight = exp2((slots_from(args, scores, slot) - splat(maximum)) * splat(kLog2E));
    total += weight;
    store_narrow(weights + slot, weight, args.pitch - slot);
  }
  const float sum = sum_lanes(total);
  const Vec inverse = splat(sum == 0.0f ? 0.0f : 1.0f / sum);
  for (int slot = 0; slot < args.pitch; slot += kWidth) {
    const int rest = args.pitch - slot;
    const Vec weight = load_wide(weights + slot, rest);
    store_narrow(weights + slot, select(weight == Vec{}, weight, weight * inverse), rest);  // 0 also if the sum is NaN
  }
  *lse = maximum + logf(sum);
}

inline void softmax(const SoftmaxArgs& args, const Parallel& parallel) {
  constexpr int64_t kRows = 64;  // of a unit
  auto body = [&](int64_t unit, char*) {
    const int64_t stop = smaller((unit + 1) * kRows, args.rows);
    for (int64_t row = unit * kRows; row < stop; ++row)
      softmax_row(args, args.scores + row * args.pitch, args.weights + row * args.pitch, args.lse + row);
  };
  parallel_for(parallel, (args.rows + kRows - 1) / kRows, body);
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
