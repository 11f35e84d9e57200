// SPDX-License-Identifier: Apache-2.0
// Fused attention by its definition, one row of a result at a time. The fused kernels compute in tiles, with weights of
// zero for the pairs outside the windows. Zero times NaN or infinity is not zero, and in the units of a tile's
// exponents (log 2) the largest finite scores overflow: such results are not finite. A kernel that finds one computes
// the row again from here, out of nothing but what the row sees and with scores in natural units. Additional tokens are
// seen by every query. A score of -inf is a key that is not seen, and so is a key that is masked.
//
// A row is computed by a team of threads, see common/scores.h.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/scores.h"
#include "common/walk.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// From here on the log-sum-exp of a row says too little of the weights: exp(score - lse) has lost the digits after the
// point. Kernels leave the rows of such queries to this file.
constexpr float kLargestLse = 65536.0f;

JAX_NA_HD inline bool has_exact_lse(float lse) { return !(fabsf(lse) >= kLargestLse); }

// Maximum of the scores that a query sees and the sum of exp(score - top); -inf and 0 if it sees no key.
struct SoftmaxStatistics {
  float top = -INFINITY, sum = 0;

  // With one score more; returns the share of what was there before in the new sum, and that of the new score.
  struct Shares {
    float before, added;
  };
  JAX_NA_HD Shares add(float score) {
    const float highest = score > top ? score : top;
    const float before = sum * expf(top - highest), added = expf(score - highest);  // the first time: 0 * exp(-inf)
    top = highest;
    sum = before + added;
    return {before / sum, added / sum};
  }
};
JAX_NA_HD inline float log_sum_exp(SoftmaxStatistics row) { return row.sum == 0 ? -INFINITY : row.top + logf(row.sum); }

#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team>
JAX_NA_HD inline SoftmaxStatistics softmax_statistics(const Team& team,
                                                      const AttentionOperands<typename Team::Element>& operands,
                                                      int64_t row, const View& query) {
  SoftmaxStatistics found;
  for_each_score(team, operands, row, query, [&](float score, auto*, auto*, int) { found.add(score); });
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
                                        int64_t row, const View& query) {
  const float lse = operands.lse[row];
  if (has_exact_lse(lse)) return {{lse, 1}, 1};
  const SoftmaxStatistics found = softmax_statistics(team, operands, row, query);
  if (found.sum == 0) return {{0, 1}, 0};
  const float own = log_sum_exp(found), rounding = 4 * 1.1920929e-7f * fabsf(own);
  const float others = own - lse;  // 0 but for rounding, unless the log-sum-exp is of more keys
  return {found, (fabsf(others) <= rounding ? 1.0f : expf(others)) / found.sum};
}

// out and lse of one query. The sums are means of the values so far: they do not overflow if no value does.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team>
JAX_NA_HD inline void attention_row(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                    int64_t row, typename Team::Element* out, float& lse) {
  const int dim = operands.problem.value_dim;
  const View query = view_of_query(operands.problem, row);
  SoftmaxStatistics found;
  for_each_feature_block(team, {0, dim}, [&](int first) {
    RowSums<Team> means{{}, first, dim};
    found = {};
    for_each_score(team, operands, row, query, [&](float score, auto*, auto* value, int) {
      const SoftmaxStatistics::Shares shares = found.add(score);
      means.add(shares.added, value, shares.before);
    });
    means.store(out + row * dim, 1);
  });
  lse = log_sum_exp(found);
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
  const View query = view_of_query(operands.problem, row);
  const RowWeights weights = row_weights(team, operands, row, query);
  for_each_feature_block(team, {0, dim}, [&](int first) {
    RowSums<Team> sums{{}, first, dim};
    bool defined = true;  // what is not stays so: nothing is left to compute
    for_each_score(team, operands, row, query, [&](float score, auto* key, auto* value, int) {
      if (!defined) return;
      const float dscore = score_gradient(team, operands, weights.of(score), row, value);
      defined = dscore == dscore;
      sums.add(dscore, key);
    });
    sums.store(dquery + row * dim, defined ? static_cast<float>(operands.problem.scale) : NAN);
  });
}

// drpb: adds the dS of one query to the bias table of its head.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team>
JAX_NA_HD inline void bias_gradient_row(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                        int64_t row, float* table) {
  const View query = view_of_query(operands.problem, row);
  const RowWeights weights = row_weights(team, operands, row, query);
  for_each_score(team, operands, row, query, [&](float score, auto*, auto* value, int entry) {
    if (entry < 0) return;  // a token
    const float dscore = score_gradient(team, operands, weights.of(score), row, value);
    if (team.thread() == 0) table[entry] += dscore;
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
  const int dim = problem.head_dim;
  if (!has_key(operands, key_row)) return;
  const View key = view_of_key(problem, key_row);
  const int position[kAxes] = {key.axis[0].position, key.axis[1].position, key.axis[2].position};
  for_each_query(problem, key, [&](int, int64_t row) {
    if (!defined) return;
    const View query = view_of_query(problem, row);
    const float product = team_product(team, operands.query + row * dim, operands.key + key_row * dim, dim);
    const float score = static_cast<float>(problem.scale) * product +
                        bias_at(operands, query.head, bias_entry(problem, query, position));
    if (score == -INFINITY) return;
    const float weight = window_present(problem, query) ? row_weights(team, operands, row, query).of(score) : NAN;
    defined = weight == weight;
    body(weight, row);
  });
}

// Gradients that belong to a key.
enum class OfKey { kKey, kValue };

// dkey or dvalue of one key: the sum over the queries that see it of scale dS Q, or of P dO.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team, class Result>
JAX_NA_HD inline void key_side_row(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                   int64_t key_row, OfKey which, Result* to, FeatureRange range) {
  const Problem& problem = operands.problem;
  const bool of_key = which == OfKey::kKey;
  const int dim = of_key ? problem.head_dim : problem.value_dim;
  const auto* features = of_key ? operands.query : operands.dout;
  range.stop = min(range.stop, dim);
  for_each_feature_block(team, range, [&](int first) {
    RowSums<Team> sums{{}, first, range.stop};
    bool defined = true;
    for_each_weight(team, operands, key_row, defined, [&](float weight, int64_t row) {
      if (of_key) weight = score_gradient(team, operands, weight, row, operands.value + key_row * problem.value_dim);
      sums.add(weight, features + row * dim);
    });
    sums.store(to + key_row * dim, of_key ? static_cast<float>(problem.scale) : 1);
  });
}
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team, class Result>
JAX_NA_HD inline void key_gradient_row(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                       int64_t key_row, Result* dkey, FeatureRange range = {}) {
  key_side_row(team, operands, key_row, OfKey::kKey, dkey, range);
}
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Team, class Result>
JAX_NA_HD inline void value_gradient_row(const Team& team, const AttentionOperands<typename Team::Element>& operands,
                                         int64_t key_row, Result* dvalue, FeatureRange range = {}) {
  key_side_row(team, operands, key_row, OfKey::kValue, dvalue, range);
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
