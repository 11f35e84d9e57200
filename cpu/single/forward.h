// SPDX-License-Identifier: Apache-2.0
// Fused forward for few queries: the newest token of a stream, a region of one point. A tile would mostly consist of
// queries that are not there, so each query is computed alone, with features in the lanes. The query heads that share a
// kv head are computed together, up to kSharedHeads at a time: they share every key and value that is loaded.
//
//   S = scale q k^T + rpb, -inf for keys that are masked;   P = exp(S - max S);   out = P V / sum P
//   lse = max S + log sum P
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/dispatch.h"
#include "common/isa.h"
#include "common/problem.h"
#include "common/walk.h"
#include "cpu/definition.h"
#include "cpu/host/kernels.h"
#include "cpu/simd/convert.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/parallel.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/scores.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

constexpr int kSharedHeads = 4;

struct SingleScratch {
  float* query;   // [kSharedHeads][dim], scaled, padded with zeros
  float* scores;  // [kSharedHeads][slots]; their weights take their place
  float* parts;   // [kSharedHeads][kWidth keys][kWidth]: products before their lanes are added
  float* out;     // [kSharedHeads][dim]
};

inline SingleScratch make_single_scratch(Arena& arena, const Problem& problem) {
  SingleScratch scratch{};
  scratch.query = arena.take<float>(int64_t{kSharedHeads} * padded(problem.head_dim));
  scratch.scores = arena.take<float>(int64_t{kSharedHeads} * padded(slots(problem)));
  scratch.parts = arena.take<float>(kSharedHeads * kWidth * kWidth);
  scratch.out = arena.take<float>(int64_t{kSharedHeads} * padded(problem.value_dim));
  return scratch;
}

inline int64_t single_scratch(const Problem& problem) {
  return arena_bytes([&](Arena& arena) { make_single_scratch(arena, problem); });
}

// Keys that follow one another along the last axis of a window: rows of [batch, keys, kv_heads], `step` apart.
struct KeyRun {
  int64_t row, step;
  int count;
  int slot;   // among those of the window that are seen, of the first
  int entry;  // of the bias, of the first
};

// Calls body(run) for the runs of keys that a query sees.
template <class Body>
inline void for_each_run(const Problem& problem, const View& query, const Body& body) {
  const AxisView(&keys)[kAxes] = query.axis;
  const int kv_head = query.head / query_heads_per_kv_head(problem), count = keys[2].seen.stop - keys[2].seen.start;
  int slot = 0;
  for (int z = keys[0].seen.start; z < keys[0].seen.stop; ++z)
    for (int y = keys[1].seen.start; y < keys[1].seen.stop; ++y, slot += count) {
      const int first[kAxes] = {z, y, keys[2].seen.start};
      const int64_t row = row_at(query, first, problem.nk, problem.kv_heads, kv_head);
      const int64_t step = int64_t{keys[2].step} * problem.kv_heads;
      body(KeyRun{row, step, count, slot, bias_entry(problem, query, first)});
    }
}

// The scores of kWidth keys and kCount heads; parts[head][key] has their products in the lanes.
template <int kCount, class T>
inline void key_products(const T* const (&key)[kWidth], int dim, const SingleScratch& scratch) {
  for (int i = 0; i < kWidth; ++i) {
    Vec sum[kCount] = {};
    for (int d = 0; d < dim; d += kWidth) {
      const Vec features = load_wide(key[i] + d, dim - d);
#pragma GCC unroll 4
      for (int h = 0; h < kCount; ++h) sum[h] += features * load(scratch.query + h * padded(dim) + d);
    }
#pragma GCC unroll 4
    for (int h = 0; h < kCount; ++h) store(scratch.parts + (h * kWidth + i) * kWidth, sum[h]);
  }
}

// The sum of the lanes of kWidth registers.
inline Vec sums_of_lanes(const float* parts) {
  Vec row[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) row[i] = load(parts + i * kWidth);
  transpose(row);
#pragma GCC unroll 4
  for (int half = kWidth / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) row[i] += row[i + half];
  return row[0];
}

// The products of a run with kCount heads, in units of log 2.
template <int kCount, class T>
inline void run_products(const Problem& problem, const T* keys, const KeyRun& run, const SingleScratch& scratch) {
  const int dim = problem.head_dim;
  for (int j = 0; j < run.count; j += kWidth) {
    const T* key[kWidth];
    for (int i = 0; i < kWidth; ++i) key[i] = keys + (run.row + min(j + i, run.count - 1) * run.step) * dim;
    key_products<kCount>(key, dim, scratch);
    for (int h = 0; h < kCount; ++h)
      store_narrow(scratch.scores + h * padded(slots(problem)) + run.slot + j,
                   sums_of_lanes(scratch.parts + h * kWidth * kWidth), run.count - j);
  }
}

// Bias and mask of a run, for kCount heads from `head` on.
template <int kCount>
inline void finish_run(const ForwardArgs& args, int head, const KeyRun& run, const SingleScratch& scratch) {
  const Problem& problem = args.problem;
  for (int h = 0; h < kCount; ++h) {
    float* scores = scratch.scores + h * padded(slots(problem)) + run.slot;
    if (args.rpb != nullptr) {
      const float* bias = args.rpb + int64_t{head + h} * bias_entries(problem) + run.entry;
      for (int j = 0; j < run.count; ++j) scores[j] += bias[j] * kLog2E;
    }
    if (args.key_mask != nullptr)
      for (int j = 0; j < run.count; ++j)
        if (args.key_mask[(run.row + j * run.step) / problem.kv_heads] == 0) scores[j] = -INFINITY;
  }
}

// Scores become exp(score - maximum); returns the log-sum-exp, and the sum.
inline float exponentiate(float* scores, int count, float& sum) {
  Vec largest = splat(kLowest);
  const int whole = count / kWidth * kWidth;
  for (int j = 0; j < whole; j += kWidth) largest = vmax(largest, load(scores + j));
  float maximum = max_lanes(largest);
  for (int j = whole; j < count; ++j) maximum = scores[j] > maximum ? scores[j] : maximum;
  const Vec top = splat(maximum);
  Vec total = {};
  for (int j = 0; j < whole; j += kWidth) {
    const Vec weight = exp2(load(scores + j) - top);
    store(scores + j, weight);
    total += weight;
  }
  sum = sum_lanes(total);
  for (int j = whole; j < count; ++j) sum += scores[j] = exp2(splat(scores[j]) - top)[0];
  return maximum * kLn2 + logf(sum);
}

// out[head][features] += weights of a run times its values, for kVectors registers of features from `first` on.
template <int kCount, int kVectors, class T>
inline void add_run_values(const Problem& problem, const T* values, const KeyRun& run, int first,
                           const SingleScratch& scratch) {
  const int dim = problem.value_dim, pitch = padded(slots(problem));
  Vec sum[kCount][kVectors];
#pragma GCC unroll 4
  for (int h = 0; h < kCount; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[h][v] = load(scratch.out + h * padded(dim) + first + v * kWidth);
  const T* value = values + run.row * dim + first;
  const float* weights = scratch.scores + run.slot;
  for (int j = 0; j < run.count; ++j, value += run.step * dim) {
    Vec features[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) features[v] = load_wide(value + v * kWidth, max(dim - first - v * kWidth, 1));
#pragma GCC unroll 4
    for (int h = 0; h < kCount; ++h) {
      const Vec weight = splat(weights[h * pitch + j]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[h][v] += weight * features[v];
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kCount; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(scratch.out + h * padded(dim) + first + v * kWidth, sum[h][v]);
}

// out and lse of a query for kCount heads, of which `row` is the first in [batch, queries, heads].
template <int kCount, class T>
void attend_heads(const ForwardArgs& args, int64_t row, const View& query, const SingleScratch& scratch) {
  const Problem& problem = args.problem;
  const int dim = problem.value_dim, pitch = padded(slots(problem));
  const T *queries = static_cast<const T*>(args.query), *keys = static_cast<const T*>(args.key);
  for (int h = 0; h < kCount; ++h)
    for (int d = 0; d < padded(problem.head_dim); d += kWidth)
      store(scratch.query + h * padded(problem.head_dim) + d,
            load_wide(queries + (row + h) * problem.head_dim + d, problem.head_dim - d) * splat(score_factor(problem)));
  int count = 0;
  for_each_run(problem, query, [&](const KeyRun& run) {
    run_products<kCount>(problem, keys, run, scratch);
    finish_run<kCount>(args, query.head, run, scratch);
    count = run.slot + run.count;
  });
  float sum[kCount];
  for (int h = 0; h < kCount; ++h) args.lse[row + h] = exponentiate(scratch.scores + h * pitch, count, sum[h]);
  for (int i = 0; i < kCount * padded(dim); i += kWidth) store(scratch.out + i, Vec{});
  const T* values = static_cast<const T*>(args.value);
  for (int first = 0; first < dim; first += 2 * kWidth)
    for_each_run(problem, query, [&](const KeyRun& run) {
      if (dim - first > kWidth)
        add_run_values<kCount, 2>(problem, values, run, first, scratch);
      else
        add_run_values<kCount, 1>(problem, values, run, first, scratch);
    });
  for (int h = 0; h < kCount; ++h) {
    T* out = static_cast<T*>(args.out) + (row + h) * dim;
    Vec finite = {};
    for (int d = 0; d < dim; d += kWidth) {
      const Vec mean = load(scratch.out + h * padded(dim) + d) / splat(sum[h]);
      finite += zero_if_finite(mean);
      store_narrow(out + d, mean, dim - d);
    }
    if (!all_zero(finite)) define_attention(args, row + h);  // for example without a key
  }
}

inline void single_forward(const ForwardArgs& args, const Parallel& parallel) {
  const Problem& problem = args.problem;
  const int repeats = query_heads_per_kv_head(problem);
  const int parts = ceil_div(repeats, kSharedHeads);  // of the heads that share a kv head
  with_half_or_single(args.dtype, [&](auto element) {
    auto body = [&](int64_t unit, char* memory) {
      Arena arena{memory};
      const SingleScratch scratch = make_single_scratch(arena, problem);
      const int first = static_cast<int>(unit % parts) * kSharedHeads;
      const int64_t row = unit / parts * repeats + first;  // units of a query are its kv heads, in order
      const View query = view_of_query(problem, row);
      match<1, 2, 3, 4>(min(repeats - first, kSharedHeads), [&](auto count) {
        attend_heads<decltype(count)::value, decltype(element)>(args, row, query, scratch);
      });
    };
    parallel_for(parallel, problem.batch * query_tokens(problem) * problem.kv_heads * parts, body);
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
