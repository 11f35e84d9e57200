// SPDX-License-Identifier: Apache-2.0
// What the backward pass reads and writes: operands as one head sees them, and the tile kernels' scratch memory.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <atomic>

#include "common/definition.h"
#include "common/isa.h"
#include "common/problem.h"
#include "cpu/definition.h"
#include "cpu/host/kernels.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/parallel.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/micro.h"
#include "cpu/tiles/panel.h"
#include "cpu/tiles/scores.h"
#include "cpu/tiles/slabs.h"
#include "cpu/tiles/tile.h"
#include "cpu/tiles/view.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// What any of the threads has left out, to be done by definition when all are ready.
struct LeftOut {
  std::atomic<bool> keys{false};     // values that are not finite may have reached keys that they do not concern
  std::atomic<bool> queries{false};  // the contribution of queries whose log-sum-exp is not exact
};

// The log-sum-exp of a query in the units of the exponents; infinite, so that all weights are 0, if it sees no key or
// if it is left out.
inline float tile_lse(float lse, LeftOut& left_out) {
  if (lse == -INFINITY) {
    left_out.keys = true;  // the rest of the row may hold anything, and must not count
    return INFINITY;
  }
  if (!has_exact_lse(lse)) {
    left_out.queries = true;
    return INFINITY;
  }
  return lse * kLog2E;
}

// The gradients that the kernel has left out. One thread adds those of queries: their order is fixed.
inline void finish_gradients(const BackwardArgs& args, const Parallel& parallel, const LeftOut& left_out) {
  const Problem& problem = args.problem;
  if (left_out.queries) {
    const int64_t rows = problem.batch * query_tokens(problem) * problem.heads;
    for (int64_t row = 0; row < rows; ++row)
      if (args.lse[row] != -INFINITY && !has_exact_lse(args.lse[row])) add_gradients_of_query(args, row);
  }
  if (!left_out.keys) return;
  const auto finite = [](const void* sums, int64_t row, int dim) {
    return is_finite(static_cast<const float*>(sums) + row * dim, dim);
  };
  auto body = [&](int64_t row, char*) {
    if (finite(args.dkey, row, problem.head_dim) && finite(args.dvalue, row, problem.value_dim)) return;
    define_key_gradients(args, row);
  };
  parallel_for(parallel, problem.batch * key_tokens(problem) * problem.kv_heads, body);
}

template <class Packed>
struct BackwardScratch {
  Packed *query, *dout;  // tiles, [dim][kLanes]
  float* dquery;
  Packed *query_tokens, *dout_tokens;  // [kLanes][dim]
  Packed *keys, *values;               // panels, along features
  Packed* key_tokens;                  // the keys along tokens: of floats, the same panel
  float *dkeys, *dvalues;              // panels
  float *scores, *dscores;             // [kChunk][kLanes]; rounded to pairs they stay in place
  Packed* dscore_rows;                 // dscores as `outer` wants them: of floats, the same
  float *lse, *delta, *maximum;        // per lane
  Lanes* lanes;
  BoxChunk* chunk;
  Streamed<const Packed>*key_rows, *value_rows;
  Streamed<float>* sums;
  LeftOut* left_out;  // of all threads
};

// Tokens of a panel.
inline int64_t backward_capacity(const Problem& problem) {
  return smaller(kPanelFloats / (2 * (problem.head_dim + problem.value_dim)), group_tokens(problem));
}

template <class Packed>
inline BackwardScratch<Packed> make_backward_scratch(Arena& arena, const Problem& problem) {
  const int64_t key_tile = int64_t{padded(problem.head_dim)} * kLanes;
  const int64_t value_tile = int64_t{padded(problem.value_dim)} * kLanes;
  const int64_t capacity = backward_capacity(problem);
  BackwardScratch<Packed> scratch{};
  scratch.query = arena.take<Packed>(key_tile);
  scratch.dout = arena.take<Packed>(value_tile);
  scratch.dquery = arena.take<float>(key_tile);
  scratch.query_tokens = arena.take<Packed>(key_tile);
  scratch.dout_tokens = arena.take<Packed>(value_tile);
  scratch.keys = arena.take<Packed>(panel_floats(problem.head_dim, capacity));
  scratch.values = arena.take<Packed>(panel_floats(problem.value_dim, capacity));
  scratch.dkeys = arena.take<float>(capacity * problem.head_dim);
  scratch.dvalues = arena.take<float>(capacity * problem.value_dim);
  scratch.scores = arena.take<float>(kChunk * kLanes);
  scratch.dscores = arena.take<float>(kChunk * kLanes);
  scratch.lse = arena.take<float>(kLanes);
  scratch.delta = arena.take<float>(kLanes);
  scratch.maximum = arena.take<float>(kLanes);
  scratch.lanes = arena.take<Lanes>(1);
  scratch.chunk = arena.take<BoxChunk>(1);
  scratch.key_rows = arena.take<Streamed<const Packed>>(1);
  scratch.value_rows = arena.take<Streamed<const Packed>>(1);
  scratch.sums = arena.take<Streamed<float>>(1);
  if constexpr (kTerms<Packed> == 2) {
    scratch.key_tokens = arena.take<Packed>(panel_floats(problem.head_dim, capacity) / 2 + kWidth);
    scratch.dscore_rows = arena.take<Packed>(kChunk * kLanes / 2);
  } else {
    scratch.key_tokens = scratch.keys;
    scratch.dscore_rows = scratch.dscores;
  }
  return scratch;
}

inline int64_t backward_scratch(const Problem& problem) {
  return arena_bytes([&](Arena& arena) { make_backward_scratch<PackedOf<BFloat16>>(arena, problem); });
}

// The operands of one query head and the kv head it reads.
template <class T>
struct BackwardViews {
  HeadView<const T> query, dout, key, value;
  HeadView<T> dquery;
  HeadView<float> dkey, dvalue;
  HeadView<const float> lse, delta;
};

template <class T>
inline BackwardViews<T> make_backward_views(const BackwardArgs& args, int64_t batch, int head) {
  const Problem& problem = args.problem;
  const int kv_head = head / query_heads_per_kv_head(problem);
  return {query_view(problem, static_cast<const T*>(args.query), batch, head, problem.head_dim),
          query_view(problem, static_cast<const T*>(args.dout), batch, head, problem.value_dim),
          key_view(problem, static_cast<const T*>(args.key), batch, kv_head, problem.head_dim),
          key_view(problem, static_cast<const T*>(args.value), batch, kv_head, problem.value_dim),
          query_view(problem, static_cast<T*>(args.dquery), batch, head, problem.head_dim),
          key_view(problem, static_cast<float*>(args.dkey), batch, kv_head, problem.head_dim),
          key_view(problem, static_cast<float*>(args.dvalue), batch, kv_head, problem.value_dim),
          query_view(problem, args.lse, batch, head, 1),
          query_view(problem, args.delta, batch, head, 1)};
}

// Packs the queries and their cotangents, both as rows and transposed, and the statistics of their softmax.
template <class T>
void load_queries(const Problem& problem, const BackwardViews<T>& views, const BackwardScratch<PackedOf<T>>& scratch) {
  const Lanes& lanes = *scratch.lanes;
  pack_tokens(views.query, lanes, static_cast<float>(problem.scale), scratch.query_tokens);
  pack_tokens(views.dout, lanes, 1.0f, scratch.dout_tokens);
  pack_tile(views.query, lanes, score_factor(problem), scratch.query);
  pack_tile(views.dout, lanes, 1.0f, scratch.dout);
  memset(scratch.dquery, 0, padded(problem.head_dim) * kLanes * sizeof(float));
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t token = lanes.token[lane];
    scratch.lse[lane] =
        lanes.valid[lane] ? tile_lse(views.lse.base[token * views.lse.stride], *scratch.left_out) : INFINITY;
    scratch.delta[lane] = views.delta.base[token * views.delta.stride];
  }
}

// Results that are sums start from zero.
inline void clear_sums(const BackwardArgs& args, const Parallel& parallel) {
  const Problem& problem = args.problem;
  const int64_t rows = problem.batch * key_tokens(problem) * problem.kv_heads;
  clear(parallel, static_cast<float*>(args.dkey), rows * problem.head_dim);
  clear(parallel, static_cast<float*>(args.dvalue), rows * problem.value_dim);
  if (args.drpb != nullptr)
    clear(parallel, args.drpb, int64_t{args.drpb_parts} * problem.heads * bias_entries(problem));
}

// The gradient tables that a part adds to; null without a bias.
inline float* bias_table_of(const BackwardArgs& args, int64_t part) {
  if (args.drpb == nullptr) return nullptr;
  return args.drpb + part * args.problem.heads * bias_entries(args.problem);
}

// The table of one head among them.
inline float* bias_table_of_head(const Problem& problem, float* drpb, int head) {
  return drpb == nullptr ? nullptr : drpb + int64_t{head} * bias_entries(problem);
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
