// SPDX-License-Identifier: Apache-2.0
// Fused attention by its definition, one row of a result at a time. The fused kernels compute in tiles, with weights of
// zero for the pairs outside the windows. Zero times NaN or infinity is not zero, and in the units of a tile's
// exponents (log 2) the largest finite scores overflow: such results are not finite. A kernel that finds one computes
// the row again from here, out of nothing but what the row sees and with scores in natural units. Additional tokens are
// seen by every query. A score of -inf is a key that is not seen.
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
  const float* rpb;                        // or null
  const Element *token_key, *token_value;  // or null
  int tokens;
  const float *lse, *delta;
  const Element* dout;
};

inline namespace JAX_NA_ISA {

// From here on the log-sum-exp of a row says too little of the weights: exp(score - lse) has lost the digits after the
// point. Kernels leave the rows of such queries to this file.
constexpr float kLargestLse = 65536.0f;

JAX_NA_HD inline bool has_exact_lse(float lse) { return !(fabsf(lse) >= kLargestLse); }

// Maximum of the scores that a query sees and the sum of exp(score - top); -inf and 0 if it sees no key.
struct SoftmaxStatistics {
  float top, sum;
};
JAX_NA_HD inline float log_sum_exp(SoftmaxStatistics row) { return row.sum == 0 ? -INFINITY : row.top + logf(row.sum); }

#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team>
JAX_NA_HD inline float team_product(const Team& team, const typename Team::Element* x, const typename Team::Element* y,
                                    int dim) {
  float sum = 0;
  for (int d = team.thread(); d < dim; d += Team::kThreads) sum += Team::widen(x[d]) * Team::widen(y[d]);
  return team.sum(sum);
}

// Index of a slot of a query's window in the bias table of its head: key - query + kernel_size - 1 per axis.
JAX_NA_HD inline int bias_entry_of_slot(const Problem& problem, const View& query, int slot) {
  int entry = 0, stride = 1;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    const int size = problem.axis[axis].kernel_size;
    const AxisView& view = query.axis[axis];
    entry += (view.seen.start + slot % size - view.position + size - 1) * stride;
    slot /= size;
    stride *= 2 * size - 1;
  }
  return entry;
}

// The score of a query with the key in a slot of its window.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team>
JAX_NA_HD inline float score_of_slot(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                     const View& query, int64_t query_row, int slot, int64_t key_row) {
  const Problem& problem = operands.problem;
  const int64_t dim = problem.head_dim;
  const float product =
      team_product(team, operands.query + query_row * dim, operands.key + key_row * dim, problem.head_dim);
  const float score = static_cast<float>(problem.scale) * product;
  if (operands.rpb == nullptr) return score;
  return score + operands.rpb[int64_t{query.head} * bias_entries(problem) + bias_entry_of_slot(problem, query, slot)];
}

// Calls body(score, features of the key, of the value, slot) for every key that a query sees; slot -1 is a token.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team, class Body>
JAX_NA_HD inline void for_each_score(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                     int64_t row, const Body& body) {
  const Problem& problem = operands.problem;
  const int64_t dim = problem.head_dim, value_dim = problem.value_dim;
  const View query = view_of_query(problem, row);
  for_each_key(problem, query, [&](int slot, int64_t key) {
    const float score = score_of_slot(team, operands, query, row, slot, key);
    if (score != -INFINITY) body(score, operands.key + key * dim, operands.value + key * value_dim, slot);
  });
  const int kv_head = query.head / query_heads_per_kv_head(problem);
  for (int token = 0; token < operands.tokens; ++token) {
    const int64_t key = (query.batch * operands.tokens + token) * problem.kv_heads + kv_head;
    const auto* features = operands.token_key + key * dim;
    const float score =
        static_cast<float>(problem.scale) * team_product(team, operands.query + row * dim, features, problem.head_dim);
    if (score != -INFINITY) body(score, features, operands.token_value + key * value_dim, -1);
  }
}

#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team>
JAX_NA_HD inline SoftmaxStatistics softmax_statistics(const Team& team,
                                                      const AttentionOperands<typename Team::Element>& operands,
                                                      int64_t row) {
  SoftmaxStatistics found{-INFINITY, 0};
  for_each_score(team, operands, row, [&](float score, const auto*, const auto*, int) {
    const float top = score > found.top ? score : found.top;
    found.sum = found.sum * expf(found.top - top) + expf(score - top);  // the first time: 0 * exp(-inf)
    found.top = top;
  });
  return found;
}

// exp(score - LSE) of one query. A log-sum-exp that is not exact is that of the keys here, or of more keys besides.
struct RowWeights {
  SoftmaxStatistics row;
  float factor;

  JAX_NA_HD float of(float score) const { return expf(score - row.top) * factor; }
};

#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team>
JAX_NA_HD inline RowWeights row_weights(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                        int64_t row) {
  const float lse = operands.lse[row];
  if (has_exact_lse(lse)) return {{lse, 1}, 1};
  const SoftmaxStatistics found = softmax_statistics(team, operands, row);
  if (found.sum == 0) return {{0, 1}, 0};
  const float own = log_sum_exp(found), rounding = 4 * 1.1920929e-7f * fabsf(own);
  const float others = own - lse;  // 0 but for rounding, unless the log-sum-exp is of more keys
  return {found, (fabsf(others) <= rounding ? 1.0f : expf(others)) / found.sum};
}

// Features of one row of a result, a block of them at a time.
template <class Team>
struct RowSums {
  float sum[Team::kFeatures] = {};
  int first, dim;  // of this thread; features of the row

  // += weight * features
  JAX_NA_HD void add(float weight, const typename Team::Element* features) {
    for (int i = 0; i < Team::kFeatures; ++i) {
      const int d = first + i * Team::kThreads;
      if (d < dim) sum[i] += weight * Team::widen(features[d]);
    }
  }
  template <class Result>
  JAX_NA_HD void store(Result* row, float factor) const {
    for (int i = 0; i < Team::kFeatures; ++i) {
      const int d = first + i * Team::kThreads;
      if (d < dim) Team::narrow(row[d], sum[i] * factor);
    }
  }
};

// Calls body(first feature of this thread) for blocks of the features of a row.
template <class Team, class Body>
JAX_NA_HD inline void for_each_feature_block(const Team& team, int dim, const Body& body) {
  for (int first = 0; first < dim; first += Team::kThreads * Team::kFeatures) body(first + team.thread());
}

// out and lse of one query.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team>
JAX_NA_HD inline void attention_row(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                    int64_t row, typename Team::Element* out, float& lse) {
  const int dim = operands.problem.value_dim;
  const SoftmaxStatistics found = softmax_statistics(team, operands, row);
  const bool defined = found.sum == found.sum;
  for_each_feature_block(team, dim, [&](int first) {
    RowSums<Team> sums{{}, first, dim};
    if (defined)
      for_each_score(team, operands, row, [&](float score, const auto*, const auto* value, int) {
        sums.add(expf(score - found.top), value);
      });
    sums.store(out + row * dim, found.sum == 0 ? 0 : defined ? 1 / found.sum : NAN);
  });
  lse = defined ? log_sum_exp(found) : NAN;
}

// dS of a pair: P (<dO, V> - delta).
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team>
JAX_NA_HD inline float score_gradient(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                      float weight, int64_t query_row, const typename Team::Element* value) {
  const int dim = operands.problem.value_dim;
  return weight * (team_product(team, operands.dout + query_row * dim, value, dim) - operands.delta[query_row]);
}

// dquery of one query: the sum over its keys of scale dS K.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team>
JAX_NA_HD inline void query_gradient_row(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                         int64_t row, typename Team::Element* dquery) {
  const int dim = operands.problem.head_dim;
  const RowWeights weights = row_weights(team, operands, row);
  for_each_feature_block(team, dim, [&](int first) {
    RowSums<Team> sums{{}, first, dim};
    bool defined = true;  // what is not stays so: nothing is left to compute
    for_each_score(team, operands, row, [&](float score, const auto* key, const auto* value, int) {
      if (!defined) return;
      const float dscore = score_gradient(team, operands, weights.of(score), row, value);
      defined = dscore == dscore;
      sums.add(dscore, key);
    });
    sums.store(dquery + row * dim, defined ? static_cast<float>(operands.problem.scale) : NAN);
  });
}

// Calls body(P, row of the query) for every query that sees a key, of every head that shares the key's, while
// `defined`: a weight that is not a number ends it.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team, class Body>
JAX_NA_HD inline void for_each_weight(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                      int64_t key_row, bool& defined, const Body& body) {
  const Problem& problem = operands.problem;
  for_each_query(problem, view_of_key(problem, key_row), [&](int slot, int64_t row) {
    if (!defined) return;
    const float score = score_of_slot(team, operands, view_of_query(problem, row), row, slot, key_row);
    if (score == -INFINITY) return;
    const float weight = row_weights(team, operands, row).of(score);
    defined = weight == weight;
    body(weight, row);
  });
}

// dvalue of one key: the sum over the queries that see it of P dO.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team, class Result>
JAX_NA_HD inline void value_gradient_row(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                         int64_t key_row, Result* dvalue) {
  const int64_t dim = operands.problem.value_dim;
  for_each_feature_block(team, static_cast<int>(dim), [&](int first) {
    RowSums<Team> sums{{}, first, static_cast<int>(dim)};
    bool defined = true;
    for_each_weight(team, operands, key_row, defined,
                    [&](float weight, int64_t row) { sums.add(weight, operands.dout + row * dim); });
    sums.store(dvalue + key_row * dim, defined ? 1 : NAN);
  });
}

// dkey of one key: the sum over the queries that see it of scale dS Q.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team, class Result>
JAX_NA_HD inline void key_gradient_row(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                       int64_t key_row, Result* dkey) {
  const Problem& problem = operands.problem;
  const int64_t dim = problem.head_dim;
  const auto* value = operands.value + key_row * problem.value_dim;
  for_each_feature_block(team, problem.head_dim, [&](int first) {
    RowSums<Team> sums{{}, first, problem.head_dim};
    bool defined = true;
    for_each_weight(team, operands, key_row, defined, [&](float weight, int64_t row) {
      const float dscore = score_gradient(team, operands, weight, row, value);
      defined = dscore == dscore;
      sums.add(dscore, operands.query + row * dim);
    });
    sums.store(dkey + key_row * dim, defined ? static_cast<float>(problem.scale) : NAN);
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
