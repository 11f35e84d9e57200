// SPDX-License-Identifier: Apache-2.0
#include "cpu/definition.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "common/definition.h"
#include "common/dtype.h"
#include "common/problem.h"
#include "common/walk.h"
#include "cpu/simd/numeric.h"
#include "cpu/unfused_rows.h"

namespace jax_na {
namespace {

template <class T>
struct OneThread {
  using Element = T;
  static constexpr int kThreads = 1, kFeatures = 64;

  static float widen(T value) { return to_accumulator(value); }
  template <class To>
  static void narrow(To& to, float value) {
    assign(to, value);
  }
  int thread() const { return 0; }
  float sum(float value) const { return value; }
};

template <class T>
AttentionOperands<T> operands_of(const ForwardArgs& args) {
  return {args.problem,
          static_cast<const T*>(args.query),
          static_cast<const T*>(args.key),
          static_cast<const T*>(args.value),
          args.rpb,
          static_cast<const T*>(args.tokens.key),
          static_cast<const T*>(args.tokens.value),
          args.tokens.count,
          args.key_mask};
}

template <class T>
AttentionOperands<T> operands_of(const BackwardArgs& args) {
  return {args.problem,
          static_cast<const T*>(args.query),
          static_cast<const T*>(args.key),
          static_cast<const T*>(args.value),
          args.rpb,
          static_cast<const T*>(args.tokens.key),
          static_cast<const T*>(args.tokens.value),
          args.tokens.count,
          args.key_mask,
          args.lse,
          args.delta,
          static_cast<const T*>(args.dout)};
}

template <class T>
void add_gradients(const BackwardArgs& args, int64_t row) {
  const Problem& problem = args.problem;
  const OneThread<T> team;
  const AttentionOperands<T> operands = operands_of<T>(args);
  const View query = view_of_query(problem, row);
  const RowWeights weights = row_weights(team, operands, row, query);
  const T *features = operands.query + row * problem.head_dim, *dout = operands.dout + row * problem.value_dim;
  const float scale = static_cast<float>(problem.scale);
  for_each_score(team, operands, row, query, [&](float score, const T* key, const T* value, int entry) {
    if (entry < 0) return;  // a token: its gradients are the caller's matter
    const float weight = weights.of(score), dscore = score_gradient(team, operands, weight, row, value);
    float* dkey = static_cast<float*>(args.dkey) + (key - operands.key);
    float* dvalue = static_cast<float*>(args.dvalue) + (value - operands.value);
    for (int d = 0; d < problem.head_dim; ++d) dkey[d] += scale * dscore * to_accumulator(features[d]);
    for (int d = 0; d < problem.value_dim; ++d) dvalue[d] += weight * to_accumulator(dout[d]);
    if (args.drpb != nullptr) args.drpb[int64_t{query.head} * bias_entries(problem) + entry] += dscore;
  });
  query_gradient_row(team, operands, row, static_cast<T*>(args.dquery));
}

// Whether a query sees none of the keys of the grid, because all of its window are masked.
bool sees_nothing(const Problem& problem, const uint8_t* mask, const View& query) {
  const AxisView(&keys)[kAxes] = query.axis;
  for (int z = keys[0].seen.start; z < keys[0].seen.stop; ++z)
    for (int y = keys[1].seen.start; y < keys[1].seen.stop; ++y) {
      const uint8_t* exists = mask + row_at(query, {z, y, keys[2].seen.start}, problem.nk, 1, 0);
      for (int x = keys[2].seen.start; x < keys[2].seen.stop; ++x, exists += keys[2].step)
        if (*exists != 0) return false;
    }
  return true;
}

}  // namespace

void define_attention(const ForwardArgs& args, int64_t query_row) {
  // What is cheap to see is worth it where there are many such rows, as on land in a model of the ocean.
  if (args.key_mask != nullptr && args.tokens.count == 0 &&
      sees_nothing(args.problem, args.key_mask, view_of_query(args.problem, query_row))) {
    const int64_t bytes = int64_t{args.problem.value_dim} * kDTypeBytes[static_cast<int>(args.dtype)];
    memset(static_cast<char*>(args.out) + query_row * bytes, 0, static_cast<size_t>(bytes));
    args.lse[query_row] = -INFINITY;
    return;
  }
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    attention_row(OneThread<T>{}, operands_of<T>(args), query_row, static_cast<T*>(args.out), args.lse[query_row]);
  });
}

void define_query_gradient(const BackwardArgs& args, int64_t query_row) {
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    query_gradient_row(OneThread<T>{}, operands_of<T>(args), query_row, static_cast<T*>(args.dquery));
  });
}

void define_key_gradients(const BackwardArgs& args, int64_t key_row) {
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    const auto operands = operands_of<T>(args);
    key_gradient_row(OneThread<T>{}, operands, key_row, static_cast<float*>(args.dkey));
    value_gradient_row(OneThread<T>{}, operands, key_row, static_cast<float*>(args.dvalue));
  });
}

void add_gradients_of_query(const BackwardArgs& args, int64_t query_row) {
  with_half_or_single(args.dtype, [&](auto element) { add_gradients<decltype(element)>(args, query_row); });
}

void define_av(const UnfusedArgs& args, int64_t query_row) {
  with_half_or_single(args.dtype, [&](auto element) { av_row<decltype(element)>(args, query_row); });
}

void define_inverse(const UnfusedArgs& args, int64_t key_row) {
  with_half_or_single(args.dtype, [&](auto element) { inverse_row<decltype(element), float>(args, key_row); });
}

}  // namespace jax_na
