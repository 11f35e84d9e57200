// SPDX-License-Identifier: Apache-2.0
// Fused forward: one pass over the keys that a tile of queries can see, softmax kept online.
//
//   for each chunk of keys:   S = scale q k^T + rpb, -inf outside the windows
//                             m' = max(m, rowmax S);  P = exp(S - m');  l = l exp(m - m') + rowsum P
//                             O = O exp(m - m') + P V
//   out = O / l;  lse = m + log l
#pragma once

#include "cpu/tiles/scores.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// E: element of the packed operands.
template <class E>
struct ForwardScratch {
  E* query;  // tiles, [dim][kLanes]
  float* out;
  E *keys, *values;                               // panels
  float* scores;                                  // [kChunk][kLanes]; their weights take their place
  float *maximum, *chunk_maximum, *sum, *factor;  // per lane
  Lanes* lanes;
  Chunk* chunk;
  Rows<const E>* rows;
};

// Tokens of a panel.
inline int64_t forward_capacity(const Problem& p) {
  return smaller(kPanelFloats / (p.head_dim + p.value_dim), group_tokens(p));
}

template <class E>
inline ForwardScratch<E> make_forward_scratch(Arena& arena, const Problem& p) {
  const int64_t capacity = forward_capacity(p);
  return {arena.take<E>(int64_t{padded(p.head_dim)} * kLanes),
          arena.take<float>(int64_t{padded(p.value_dim)} * kLanes),
          arena.take<E>(panel_floats(p.head_dim, capacity)),
          arena.take<E>(panel_floats(p.value_dim, capacity)),
          arena.take<float>(kChunk * kLanes),
          arena.take<float>(kLanes),
          arena.take<float>(kLanes),
          arena.take<float>(kLanes),
          arena.take<float>(kLanes),
          arena.take<Lanes>(1),
          arena.take<Chunk>(1),
          arena.take<Rows<const E>>(1)};
}

inline int64_t forward_scratch(const Problem& p) {
  return arena_bytes([&](Arena& arena) { make_forward_scratch<float>(arena, p); });
}

// Masked scores become probabilities relative to the new maximum; factor = exp(m - m'), the sum is updated. It is of
// probabilities as they are before pairs of them are rounded; there the number of keys is even.
template <class E>
inline void online_softmax(int keys, const ForwardScratch<E>& s) {
  for (int v = 0; v < kVecs; ++v) {
    float* scores = s.scores + v * kWidth;
    const Vec old = load(s.maximum + v * kWidth), m = vmax(old, load(s.chunk_maximum + v * kWidth));
    Vec total = {}, other = {};
    int j = 0;
    for (; j + 2 <= keys; j += 2) {  // two chains hide the latency of the sum
      const Vec p = exp2(load(scores + j * kLanes) - m), q = exp2(load(scores + (j + 1) * kLanes) - m);
      if constexpr (kTerms<E> == 2) {
        store(scores + j / 2 * kLanes, interleave(narrow(p, q)));
      } else {
        store(scores + j * kLanes, p);
        store(scores + (j + 1) * kLanes, q);
      }
      total += p;
      other += q;
    }
    if (j < keys) {
      const Vec p = exp2(load(scores + j * kLanes) - m);
      store(scores + j * kLanes, p);
      total += p;
    }
    const Vec factor = exp2(old - m);
    store(s.factor + v * kWidth, factor);
    store(s.maximum + v * kWidth, m);
    store(s.sum + v * kWidth, load(s.sum + v * kWidth) * factor + (total + other));
  }
}

// Multiplies what was summed so far by the factor of each lane.
inline void rescale_tile(float* tile, const float* factor, int dim) {
  for (int d = 0; d < dim; ++d)
    for (int v = 0; v < kVecs; ++v) {
      float* t = tile + d * kLanes + v * kWidth;
      store(t, load(t) * load(factor + v * kWidth));
    }
}

// The operands of one query head and the kv head it reads.
template <class T>
struct ForwardViews {
  View<const T> query, key, value;
  View<T> out;
  View<float> lse;
};

template <class T>
inline ForwardViews<T> make_forward_views(const ForwardArgs& args, int64_t batch, int head) {
  const Problem& p = args.problem;
  const int kv_head = head / query_heads_per_kv_head(p);
  const int64_t queries = query_tokens(p), keys = key_tokens(p);
  return {make_view(static_cast<const T*>(args.query), batch, queries, p.heads, head, p.head_dim),
          make_view(static_cast<const T*>(args.key), batch, keys, p.kv_heads, kv_head, p.head_dim),
          make_view(static_cast<const T*>(args.value), batch, keys, p.kv_heads, kv_head, p.value_dim),
          make_view(static_cast<T*>(args.out), batch, queries, p.heads, head, p.value_dim),
          make_view(args.lse, batch, queries, p.heads, head, 1)};
}

template <class T>
void forward_tile(const ForwardArgs& args, const Tile& tile, const Panel& panel, const ForwardScratch<Element<T>>& s) {
  using E = Element<T>;
  const Problem& p = args.problem;
  const ForwardViews<T> views = make_forward_views<T>(args, tile.batch, tile.head);
  const BiasTable bias = make_bias_table(p, args.rpb, tile.head);
  const auto token_of = [&](const int (&i)[kAxes]) { return key_token(p, tile, i); };
  const int step = p.axis[2].dilation;

  pack_tile(views.query, *s.lanes, score_factor(p), s.query);
  memset(s.out, 0, padded(p.value_dim) * kLanes * sizeof(float));
  for (int lane = 0; lane < kLanes; ++lane) s.maximum[lane] = kLowest, s.sum[lane] = 0.0f;

  bool first = true;
  for_each_chunk(*s.lanes, *s.chunk, [&] {
    visit_rows(panel, views.key, *s.chunk, step, token_of, Along::kFeatures, s.keys, *s.rows);
    dot(s.query, *s.rows, score_factor(p), s.scores);
    if (bias.entries != nullptr) add_bias(bias, *s.lanes, *s.chunk, s.scores);
    mask_scores(*s.lanes, *s.chunk, s.scores, s.chunk_maximum);
    online_softmax(s.chunk->keys, s);
    if (!first) rescale_tile(s.out, s.factor, p.value_dim);
    first = false;
    visit_rows(panel, views.value, *s.chunk, step, token_of, Along::kTokens, s.values, *s.rows);
    accumulate(reinterpret_cast<const E*>(s.scores), *s.rows, s.out);
  });

  for (int lane = 0; lane < kLanes; ++lane) {
    s.factor[lane] = 1.0f / s.sum[lane];
    if (s.lanes->valid[lane])
      views.lse.base[s.lanes->token[lane] * views.lse.stride] = s.maximum[lane] * kLn2 + logf(s.sum[lane]);
  }
  unpack_tile(s.out, s.factor, *s.lanes, views.out);
}

// One unit: a run of query tiles, for every query head that shares a kv head; keys and values are packed once.
template <class T>
void forward_run(const ForwardArgs& args, const TileGrid& grid, int64_t unit, char* memory) {
  const Problem& p = args.problem;
  Tile tile;
  int stop;
  const UnitIndex index = split_unit(unit, p.kv_heads, grid.units);
  if (!locate_run(p, grid, index.unit, tile, stop)) return;
  const int repeats = query_heads_per_kv_head(p), kv_head = index.head;
  tile.batch = index.batch;
  Arena arena{memory};
  const auto scratch = make_forward_scratch<Element<T>>(arena, p);
  const Panel panel = make_panel<Element<T>>(p, tile, Side::kQueries, stop, p.head_dim + p.value_dim);
  const auto token_of = [&](const int (&i)[kAxes]) { return key_token(p, tile, i); };
  const ForwardViews<T> views = make_forward_views<T>(args, tile.batch, kv_head * repeats);
  fill_panel(panel, views.key, p.axis[2].dilation, token_of, Along::kFeatures, scratch.keys);
  fill_panel(panel, views.value, p.axis[2].dilation, token_of, Along::kTokens, scratch.values);
  for (; tile.first[2] < stop; tile.first[2] += p.tile[2]) {
    make_lanes(p, tile, Side::kQueries, *scratch.lanes);
    visit_pairs<Element<T>>(panel, *scratch.lanes);
    for (tile.head = kv_head * repeats; tile.head < (kv_head + 1) * repeats; ++tile.head)
      forward_tile<T>(args, tile, panel, scratch);
  }
}

inline void fused_forward(const ForwardArgs& args, const Parallel& parallel) {
  const Problem& p = args.problem;
  const TileGrid grid = make_tile_grid(p, Side::kQueries, forward_capacity(p), units_per_head(p, p.kv_heads));
  with_half_or_single(args.dtype, [&](auto element) {
    auto body = [&](int64_t unit, char* memory) { forward_run<decltype(element)>(args, grid, unit, memory); };
    parallel_for(parallel, p.batch * p.kv_heads * grid.units, body);
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
