// SPDX-License-Identifier: Apache-2.0
// Fused forward: one pass over the keys that a tile of queries can see, softmax kept online.
//
//   for each chunk of keys:   S = scale q k^T + rpb, -inf outside the windows
//                             m' = max(m, rowmax S);  P = exp(S - m');  l = l exp(m - m') + rowsum P
//                             O = O exp(m - m') + P V
//   out = O / l;  lse = m + log l
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

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
#include "cpu/tiles/tile.h"
#include "cpu/tiles/view.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

template <class Packed>
struct ForwardScratch {
  Packed* query;         // tile, [dim][kLanes]
  float* out;            // tile
  Packed* keys;          // panel, along features
  Packed* values;        // panel, along tokens
  float* scores;         // [kChunk][kLanes]; their weights take their place
  float* maximum;        // per lane, so far
  float* chunk_maximum;  // per lane
  float* sum;            // per lane, of exp(score - maximum)
  float* factor;         // per lane: what becomes of sums when the maximum grows
  Lanes* lanes;
  BoxChunk* chunk;
  Streamed<const Packed>* rows;
};

// Tokens of a panel.
inline int64_t forward_capacity(const Problem& problem) {
  return smaller(kPanelFloats / (problem.head_dim + problem.value_dim), group_tokens(problem));
}

template <class Packed>
inline ForwardScratch<Packed> make_forward_scratch(Arena& arena, const Problem& problem) {
  const int64_t capacity = forward_capacity(problem);
  ForwardScratch<Packed> scratch{};
  scratch.query = arena.take<Packed>(int64_t{padded(problem.head_dim)} * kLanes);
  scratch.out = arena.take<float>(int64_t{padded(problem.value_dim)} * kLanes);
  scratch.keys = arena.take<Packed>(panel_floats(problem.head_dim, capacity));
  scratch.values = arena.take<Packed>(panel_floats(problem.value_dim, capacity));
  scratch.scores = arena.take<float>(kChunk * kLanes);
  scratch.maximum = arena.take<float>(kLanes);
  scratch.chunk_maximum = arena.take<float>(kLanes);
  scratch.sum = arena.take<float>(kLanes);
  scratch.factor = arena.take<float>(kLanes);
  scratch.lanes = arena.take<Lanes>(1);
  scratch.chunk = arena.take<BoxChunk>(1);
  scratch.rows = arena.take<Streamed<const Packed>>(1);
  return scratch;
}

inline int64_t forward_scratch(const Problem& problem) {
  return arena_bytes([&](Arena& arena) { make_forward_scratch<float>(arena, problem); });
}

// Masked scores become probabilities relative to the new maximum; factor = exp(m - m'), the sum is updated. It is of
// probabilities as they are before pairs of them are rounded; there the number of keys is even.
template <class Packed>
inline void online_softmax(int keys, const ForwardScratch<Packed>& scratch) {
  for (int lane = 0; lane < kLanes; lane += kWidth) {
    float* scores = scratch.scores + lane;
    const Vec before = load(scratch.maximum + lane);
    const Vec maximum = vmax(before, load(scratch.chunk_maximum + lane));
    Vec even_total = {}, odd_total = {};
    int key = 0;
    for (; key + 2 <= keys; key += 2) {  // two chains hide the latency of the sum
      const Vec even = exp2(load(scores + key * kLanes) - maximum);
      const Vec odd = exp2(load(scores + (key + 1) * kLanes) - maximum);
      if constexpr (kTerms<Packed> == 2) {
        store(scores + key / 2 * kLanes, interleave(narrow(even, odd)));
      } else {
        store(scores + key * kLanes, even);
        store(scores + (key + 1) * kLanes, odd);
      }
      even_total += even;
      odd_total += odd;
    }
    if (key < keys) {
      const Vec even = exp2(load(scores + key * kLanes) - maximum);
      store(scores + key * kLanes, even);
      even_total += even;
    }
    const Vec factor = exp2(before - maximum);
    store(scratch.factor + lane, factor);
    store(scratch.maximum + lane, maximum);
    store(scratch.sum + lane, load(scratch.sum + lane) * factor + (even_total + odd_total));
  }
}

// Multiplies what was summed so far by the factor of each lane.
inline void rescale_tile(float* tile, const float* factor, int dim) {
  for (int d = 0; d < dim; ++d)
    for (int lane = 0; lane < kLanes; lane += kWidth) {
      float* sums = tile + d * kLanes + lane;
      store(sums, load(sums) * load(factor + lane));
    }
}

// The operands of one query head and the kv head it reads.
template <class T>
struct ForwardViews {
  HeadView<const T> query, key, value;
  HeadView<T> out;
  HeadView<float> lse;
};

template <class T>
inline ForwardViews<T> make_forward_views(const ForwardArgs& args, int64_t batch, int head) {
  const Problem& problem = args.problem;
  const int kv_head = head / query_heads_per_kv_head(problem);
  return {query_view(problem, static_cast<const T*>(args.query), batch, head, problem.head_dim),
          key_view(problem, static_cast<const T*>(args.key), batch, kv_head, problem.head_dim),
          key_view(problem, static_cast<const T*>(args.value), batch, kv_head, problem.value_dim),
          query_view(problem, static_cast<T*>(args.out), batch, head, problem.value_dim),
          query_view(problem, args.lse, batch, head, 1)};
}

// out = O / l;  lse = m + log l. Rows that are not finite, for example without a key, by definition.
template <class T>
inline void finish_tile(const ForwardArgs& args, const Tile& tile, const ForwardViews<T>& views,
                        const ForwardScratch<PackedOf<T>>& scratch) {
  const Lanes& lanes = *scratch.lanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    scratch.factor[lane] = 1.0f / scratch.sum[lane];
    if (lanes.valid[lane])
      views.lse.base[lanes.token[lane] * views.lse.stride] = scratch.maximum[lane] * kLn2 + logf(scratch.sum[lane]);
  }
  unpack_tile(scratch.out, scratch.factor, lanes, views.out,
              [&](int lane) { define_attention(args, query_row(args.problem, tile, lanes.token[lane])); });
}

template <class T>
void forward_tile(const ForwardArgs& args, const Tile& tile, const TokenPanel& panel,
                  const ForwardScratch<PackedOf<T>>& scratch) {
  using Packed = PackedOf<T>;
  const Problem& problem = args.problem;
  const ForwardViews<T> views = make_forward_views<T>(args, tile.batch, tile.head);
  const BiasTable bias = make_bias_table(problem, args.rpb, tile.head);
  const uint8_t* mask = mask_of_batch(problem, args.key_mask, tile.batch);
  const VisitedTokens<Side::kQueries> visited{problem, tile, panel};
  const Lanes& lanes = *scratch.lanes;
  const BoxChunk& chunk = *scratch.chunk;

  pack_tile(views.query, lanes, score_factor(problem), scratch.query);
  memset(scratch.out, 0, padded(problem.value_dim) * kLanes * sizeof(float));
  for (int lane = 0; lane < kLanes; ++lane) {
    scratch.maximum[lane] = kLowest;
    scratch.sum[lane] = 0.0f;
  }

  bool first = true;
  for_each_chunk(lanes, *scratch.chunk, [&] {
    // S = scale q k^T + rpb, masked;  P = exp(S - m'), and what was summed before follows the new maximum
    visit_rows(visited, VisitedOperand{views.key, scratch.keys, Along::kFeatures}, chunk, *scratch.rows);
    dot(scratch.query, *scratch.rows, score_factor(problem), scratch.scores);
    if (bias.entries != nullptr) add_bias(bias, lanes, chunk, scratch.scores);
    if (mask != nullptr) hide_keys(visited, mask, chunk, scratch.scores);
    mask_scores(lanes, chunk, scratch.scores, scratch.chunk_maximum);
    online_softmax(chunk.keys, scratch);
    if (!first) rescale_tile(scratch.out, scratch.factor, problem.value_dim);
    first = false;
    // O += P V
    visit_rows(visited, VisitedOperand{views.value, scratch.values, Along::kTokens}, chunk, *scratch.rows);
    accumulate(reinterpret_cast<const Packed*>(scratch.scores), *scratch.rows, scratch.out);
  });
  finish_tile(args, tile, views, scratch);
}

// One unit: a run of query tiles, for every query head that shares a kv head; keys and values are packed once.
template <class T>
void forward_run(const ForwardArgs& args, const TileGrid& grid, int64_t unit, char* memory) {
  using Packed = PackedOf<T>;
  const Problem& problem = args.problem;
  const UnitIndex index = split_unit(unit, problem.kv_heads, grid.units);
  Tile tile;
  int stop;
  if (!locate_run(problem, grid, index.unit, tile, stop)) return;
  tile.batch = index.batch;
  const int repeats = query_heads_per_kv_head(problem), first_head = index.head * repeats;
  Arena arena{memory};
  const auto scratch = make_forward_scratch<Packed>(arena, problem);
  const TokenPanel panel =
      make_panel<Packed>(problem, tile, Side::kQueries, stop, problem.head_dim + problem.value_dim);
  const VisitedTokens<Side::kQueries> visited{problem, tile, panel};
  const ForwardViews<T> views = make_forward_views<T>(args, tile.batch, first_head);
  fill_panel(visited, VisitedOperand{views.key, scratch.keys, Along::kFeatures});
  fill_panel(visited, VisitedOperand{views.value, scratch.values, Along::kTokens});
  for (; tile.first[2] < stop; tile.first[2] += problem.tile[2]) {
    make_lanes(problem, tile, Side::kQueries, *scratch.lanes);
    visit_pairs<Packed>(panel, *scratch.lanes);
    for (tile.head = first_head; tile.head < first_head + repeats; ++tile.head)
      forward_tile<T>(args, tile, panel, scratch);
  }
}

inline void fused_forward(const ForwardArgs& args, const Parallel& parallel) {
  const Problem& problem = args.problem;
  const TileGrid grid =
      make_tile_grid(problem, Side::kQueries, forward_capacity(problem), units_per_head(problem, problem.kv_heads));
  with_half_or_single(args.dtype, [&](auto element) {
    auto body = [&](int64_t unit, char* memory) { forward_run<decltype(element)>(args, grid, unit, memory); };
    parallel_for(parallel, problem.batch * problem.kv_heads * grid.units, body);
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
