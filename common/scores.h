// SPDX-License-Identifier: Apache-2.0
// The scores of one query by their definition, and sums of features: what common/definition.h computes rows of.
//
// A row is computed by a team: Team::kThreads threads that call these functions together, thread() of them is the
// caller. Each keeps up to Team::kFeatures features of a result, those from thread() on in steps of kThreads.
//   Element; static float widen(Element); static void narrow(Element&, float);
//   float sum(float) const: over the threads of the team, the same for all of them.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/walk.h"

namespace jax_na {

// What attention reads; `lse` and what follows only the gradients. Arrays as in common/call/args.h.
template <class Element>
struct AttentionOperands {
  const Problem& problem;  // placed
  const Element *query, *key, *value;
  const float* rpb = nullptr;
  const Element *token_key = nullptr, *token_value = nullptr;
  int tokens = 0;
  const uint8_t* key_mask = nullptr;
  const float *lse = nullptr, *delta = nullptr;
  const Element* dout = nullptr;
};

inline namespace JAX_NA_ISA {

#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team>
JAX_NA_HD inline float team_product(const Team& team, const typename Team::Element* x, const typename Team::Element* y,
                                    int dim) {
  float sum = 0;
#ifdef __CUDACC__
#pragma unroll 1  // rows are rare, and registers scarce
#endif
  for (int d = team.thread(); d < dim; d += Team::kThreads) sum += Team::widen(x[d]) * Team::widen(y[d]);
  return team.sum(sum);
}

// Entry of a query and a key in the bias table of their head: key - query + kernel_size - 1 per axis.
JAX_NA_HD inline int bias_entry(const Problem& problem, const View& query, const int (&key)[kAxes]) {
  int entry = 0;
  for (int axis = 0; axis < kAxes; ++axis) {
    const int size = problem.axis[axis].kernel_size;
    entry = entry * (2 * size - 1) + key[axis] - query.axis[axis].position + size - 1;
  }
  return entry;
}

// The keys of a query's window in order, by their positions.
struct KeyWalk {
  const View& query;
  int position[kAxes];

  JAX_NA_HD explicit KeyWalk(const View& query_) : query(query_) {
    for (int axis = 0; axis < kAxes; ++axis) position[axis] = query.axis[axis].seen.start;
  }
  JAX_NA_HD bool inside() const { return position[0] < query.axis[0].seen.stop; }
  JAX_NA_HD void step() {
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      if (++position[axis] < query.axis[axis].seen.stop || axis == 0) return;
      position[axis] = query.axis[axis].seen.start;
    }
  }
};

// The bias of an entry in the table of a head.
template <class Element>
JAX_NA_HD inline float bias_at(const AttentionOperands<Element>& operands, int head, int entry) {
  return operands.rpb == nullptr ? 0 : operands.rpb[int64_t{head} * bias_entries(operands.problem) + entry];
}

// Whether there is a key for this row of [batch, keys, kv_heads].
template <class Element>
JAX_NA_HD inline bool has_key(const AttentionOperands<Element>& operands, int64_t key_row) {
  return operands.key_mask == nullptr || operands.key_mask[key_row / operands.problem.kv_heads] != 0;
}

// Calls body(score, features of the key, of the value, entry of the bias) for every key that a query sees, in its
// window and then among the additional tokens, whose entry is -1.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team, class Body>
JAX_NA_HD inline void for_each_score(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                     int64_t row, const View& query, const Body& body) {
  const Problem& problem = operands.problem;
  const int kv_head = query.head / query_heads_per_kv_head(problem);
  KeyWalk walk(query);
  int token = 0;
  while (walk.inside() || token < operands.tokens) {
    const bool in_window = walk.inside();
    int64_t place;
    int entry = -1;
    if (in_window) {
      place = row_at(query, walk.position, problem.nk, problem.kv_heads, kv_head);
      entry = bias_entry(problem, query, walk.position);
      walk.step();
      if (!has_key(operands, place)) continue;
    } else {
      place = (query.batch * operands.tokens + token++) * problem.kv_heads + kv_head;
    }
    const auto* key = (in_window ? operands.key : operands.token_key) + place * problem.head_dim;
    const auto* value = (in_window ? operands.value : operands.token_value) + place * problem.value_dim;
    const float product = team_product(team, operands.query + row * problem.head_dim, key, problem.head_dim);
    const float bias = in_window ? bias_at(operands, query.head, entry) : 0;
    const float score = static_cast<float>(problem.scale) * product + bias;
    if (score != -INFINITY) body(score, key, value, entry);
  }
}

// Features [first, stop) of a row, for teams that share one; `stop` may lie beyond the last.
struct FeatureRange {
  int first = 0, stop = INT32_MAX;
};

// Features of one row of a result, a block of them at a time.
template <class Team>
struct RowSums {
  float sum[Team::kFeatures] = {};
  int first, stop;  // of this thread, in steps of kThreads

  // sums * share + weight * features
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
  JAX_NA_HD void add(float weight, const typename Team::Element* features, float share = 1) {
    for (int i = 0; i < Team::kFeatures; ++i) {
      const int d = first + i * Team::kThreads;
      if (d < stop) sum[i] = sum[i] * share + weight * Team::widen(features[d]);
    }
  }
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
  template <class Result>
  JAX_NA_HD void store(Result* row, float factor) const {
    for (int i = 0; i < Team::kFeatures; ++i) {
      const int d = first + i * Team::kThreads;
      if (d < stop) Team::narrow(row[d], sum[i] * factor);
    }
  }
};

// Calls body(first feature of this thread) for blocks of the features of a row.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team, class Body>
JAX_NA_HD inline void for_each_feature_block(const Team& team, FeatureRange range, const Body& body) {
  for (int first = range.first; first < range.stop; first += Team::kThreads * Team::kFeatures)
    body(first + team.thread());
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
