// SPDX-License-Identifier: Apache-2.0
// Softmax over rows of scores, one row per query and head; may work in place.
#pragma once

#include "cpu/tiles/scores.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// The scaled scores from slot j on, -inf where there is no slot.
inline Vec slots_from(const SoftmaxArgs& args, const float* row, int j) {
  const float scale = args.scale * kLog2E;
  if (j + kWidth <= args.slots) return load(row + j) * splat(scale);
  Vec v = splat(-INFINITY);
  for (int l = 0; l < args.slots - j; ++l) v[l] = row[j + l] * scale;
  return v;
}

inline void softmax_row(const SoftmaxArgs& args, const float* scores, float* weights, float* lse) {
  Vec m = splat(kLowest);
  for (int j = 0; j < args.slots; j += kWidth) m = vmax(m, slots_from(args, scores, j));
  const float maximum = max_lanes(m);
  Vec total = {};
  for (int j = 0; j < args.pitch; j += kWidth) {
    const Vec e = exp2(slots_from(args, scores, j) - splat(maximum));
    total += e;
    store_narrow(weights + j, e, args.pitch - j);
  }
  const float sum = sum_lanes(total);
  const Vec inverse = splat(1.0f / sum);
  for (int j = 0; j < args.pitch; j += kWidth)
    store_narrow(weights + j, load_wide(weights + j, args.pitch - j) * inverse, args.pitch - j);
  *lse = maximum * kLn2 + logf(sum);
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
