// SPDX-License-Identifier: Apache-2.0
// Fused backward in one pass over query tiles, five matrix products, no atomics.
//
//   S, P = exp(S - lse)  again from q, k;   dP = dout v^T;   dS = P (dP - delta)
//   dq = scale dS k;   dk += scale dS^T q;   dv += P^T dout;   drpb += dS
//
// dk and dv are sums over query tiles that overlap in keys: slabs.h says in which order.
#pragma once

#include "cpu/tiles/scores.h"
#include "cpu/tiles/slabs.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// E: element of the packed operands.
template <class E>
struct BackwardScratch {
  E *query, *dout;  // tiles, [dim][kLanes]
  float* dquery;
  E *query_tokens, *dout_tokens;  // [kLanes][dim]
  E *keys, *values;               // panels, along features
  E* key_tokens;                  // the keys along tokens: of floats, the same panel
  float *dkeys, *dvalues;         // panels
  float *scores, *dscores;        // [kChunk][kLanes]; rounded to pairs they stay in place
  E* dscore_rows;                 // dscores as `outer` wants them: of floats, the same
  float *lse, *delta, *maximum;   // per lane
  Lanes* lanes;
  Chunk* chunk;
  Rows<const E>*key_rows, *value_rows;
  Rows<float>* sums;
};

// Tokens of a panel.
inline int64_t backward_capacity(const Problem& p) {
  return smaller(kPanelFloats / (2 * (p.head_dim + p.value_dim)), group_tokens(p));
}

template <class E>
inline BackwardScratch<E> make_backward_scratch(Arena& arena, const Problem& p) {
  const int64_t d = int64_t{padded(p.head_dim)} * kLanes, e = int64_t{padded(p.value_dim)} * kLanes;
  const int64_t capacity = backward_capacity(p);
  BackwardScratch<E> s{};
  s.query = arena.take<E>(d);
  s.dout = arena.take<E>(e);
  s.dquery = arena.take<float>(d);
  s.query_tokens = arena.take<E>(d);
  s.dout_tokens = arena.take<E>(e);
  s.keys = arena.take<E>(panel_floats(p.head_dim, capacity));
  s.values = arena.take<E>(panel_floats(p.value_dim, capacity));
  s.dkeys = arena.take<float>(capacity * p.head_dim);
  s.dvalues = arena.take<float>(capacity * p.value_dim);
  s.scores = arena.take<float>(kChunk * kLanes);
  s.dscores = arena.take<float>(kChunk * kLanes);
  s.lse = arena.take<float>(kLanes);
  s.delta = arena.take<float>(kLanes);
  s.maximum = arena.take<float>(kLanes);
  s.lanes = arena.take<Lanes>(1);
  s.chunk = arena.take<Chunk>(1);
  s.key_rows = arena.take<Rows<const E>>(1);
  s.value_rows = arena.take<Rows<const E>>(1);
  s.sums = arena.take<Rows<float>>(1);
  if constexpr (kTerms<E> == 2) {
    s.key_tokens = arena.take<E>(panel_floats(p.head_dim, capacity) / 2 + kWidth);
    s.dscore_rows = arena.take<E>(kChunk * kLanes / 2);
  } else {
    s.key_tokens = s.keys;
    s.dscore_rows = s.dscores;
  }
  return s;
}

inline int64_t backward_scratch(const Problem& p) {
  return arena_bytes([&](Arena& arena) { make_backward_scratch<Element<BFloat16>>(arena, p); });
}

// scores -> P, dscores -> dS. Lanes that do not exist have lse = -kLowest, so their P is exactly 0.
template <class E>
inline void softmax_gradient(int keys, const BackwardScratch<E>& s) {
  for (int v = 0; v < kVecs; ++v) {
    const Vec lse = load(s.lse + v * kWidth), delta = load(s.delta + v * kWidth);
    for (int j = 0; j < keys; ++j) {
      float *score = s.scores + j * kLanes + v * kWidth, *gradient = s.dscores + j * kLanes + v * kWidth;
      const Vec p = exp2(load(score) - lse);
      store(score, p);
      store(gradient, p * (load(gradient) - delta));
    }
  }
}

// Rounds the weights of the three sums to pairs: P and dS of two lanes in dk and dv, dS of two keys in dq. Pairs of
// queries and keys are not scaled, so dS is.
template <class E>
inline void round_weights(int keys, float scale, const BackwardScratch<E>& s) {
  static_assert(kTerms<E> == 1 || kVecs == 1, "a register has all lanes of a key");
  if constexpr (kTerms<E> == 2) {
    const Vec factor = splat(scale);
    for (int j = 0; j < keys; j += 2) {
      float *scores = s.scores + j * kLanes, *dscores = s.dscores + j * kLanes;
      const Vec ds = narrow(factor * load(dscores), factor * load(dscores + kLanes));
      store(s.scores + j / 2 * kLanes, narrow(load(scores), load(scores + kLanes)));
      store(s.dscore_rows + j / 2 * kLanes, ds);
      store(s.dscores + j / 2 * kLanes, interleave(ds));
    }
  }
}

// The chunk's rows of dk or dv, to be added to: in the panel of sums, or in memory when the panel is streamed.
inline void sum_rows(const Panel& panel, const View<float>& view, float* base, const Chunk& chunk, const Problem& p,
                     const Tile& tile, Rows<float>& rows) {
  rows.runs = 0;
  rows.dim = view.dim;
  rows.stride = panel.resident ? view.dim : p.axis[2].dilation * view.stride;
  for (int i = 0, first = 0; i < chunk.segments; first += chunk.segment[i++].count) {
    const int (&position)[kAxes] = chunk.segment[i].position;
    if (panel.resident)
      add_run(rows, panel_row(panel, base, Along::kFeatures, view.dim, position), first, chunk.segment[i].count);
    else
      add_run(rows, view.base + key_token(p, tile, position) * view.stride, first,
              real_tokens(panel, chunk.segment[i]));
  }
}

// Adds a resident panel of sums to memory.
inline void flush_panel(const Panel& panel, const View<float>& view, const Problem& p, const Tile& tile, float* base) {
  if (!panel.resident) return;
  const auto token_of = [&](const int (&i)[kAxes]) { return key_token(p, tile, i); };
  for_each_row(panel.box, token_of, [&](int64_t token, const int (&position)[kAxes]) {
    const float* from = panel_row(panel, base, Along::kFeatures, view.dim, position);
    float* to = view.base + token * view.stride;
    for (int j = 0; j < extent(panel.box[2]); ++j, from += view.dim, to += p.axis[2].dilation * view.stride)
      for (int d = 0; d < view.dim; ++d) to[d] += from[d];
  });
}

// The operands of one query head and the kv head it reads.
template <class T>
struct BackwardViews {
  View<const T> query, dout, key, value;
  View<T> dquery;
  View<float> dkey, dvalue;
  View<const float> lse, delta;
};

template <class T>
inline BackwardViews<T> make_backward_views(const BackwardArgs& args, int64_t batch, int head) {
  const Problem& p = args.problem;
  const int kv_head = head / query_heads_per_kv_head(p);
  const int64_t queries = query_tokens(p), keys = key_tokens(p);
  return {make_view(static_cast<const T*>(args.query), batch, queries, p.heads, head, p.head_dim),
          make_view(static_cast<const T*>(args.dout), batch, queries, p.heads, head, p.value_dim),
          make_view(static_cast<const T*>(args.key), batch, keys, p.kv_heads, kv_head, p.head_dim),
          make_view(static_cast<const T*>(args.value), batch, keys, p.kv_heads, kv_head, p.value_dim),
          make_view(static_cast<T*>(args.dquery), batch, queries, p.heads, head, p.head_dim),
          make_view(static_cast<float*>(args.dkey), batch, keys, p.kv_heads, kv_head, p.head_dim),
          make_view(static_cast<float*>(args.dvalue), batch, keys, p.kv_heads, kv_head, p.value_dim),
          make_view(args.lse, batch, queries, p.heads, head, 1),
          make_view(args.delta, batch, queries, p.heads, head, 1)};
}

// Packs the queries and their cotangents, both as rows and transposed, and the statistics of their softmax.
template <class T>
void load_queries(const Problem& p, const BackwardViews<T>& views, const BackwardScratch<Element<T>>& s) {
  const Lanes& lanes = *s.lanes;
  pack_tokens(views.query, lanes, static_cast<float>(p.scale), s.query_tokens);
  pack_tokens(views.dout, lanes, 1.0f, s.dout_tokens);
  pack_tile(views.query, lanes, score_factor(p), s.query);
  pack_tile(views.dout, lanes, 1.0f, s.dout);
  memset(s.dquery, 0, padded(p.head_dim) * kLanes * sizeof(float));
  for (int lane = 0; lane < kLanes; ++lane) {
    s.lse[lane] = lanes.valid[lane] ? views.lse.base[lanes.token[lane] * views.lse.stride] * kLog2E : -kLowest;
    s.delta[lane] = views.delta.base[lanes.token[lane] * views.delta.stride];
  }
}

// drpb: gradient table of the tile's head, or null.
template <class T>
void backward_tile(const BackwardArgs& args, const Tile& tile, const Panel& panel, float* drpb,
                   const BackwardScratch<Element<T>>& s) {
  using E = Element<T>;
  const Problem& p = args.problem;
  const BackwardViews<T> views = make_backward_views<T>(args, tile.batch, tile.head);
  const BiasTable bias = make_bias_table(p, args.rpb, tile.head);
  const auto token_of = [&](const int (&i)[kAxes]) { return key_token(p, tile, i); };
  const int step = p.axis[2].dilation;

  const float scale = static_cast<float>(p.scale);
  load_queries(p, views, s);
  for_each_chunk(*s.lanes, *s.chunk, [&] {
    visit_rows(panel, views.key, *s.chunk, step, token_of, Along::kFeatures, s.keys, *s.key_rows);
    dot(s.query, *s.key_rows, score_factor(p), s.scores);
    if (bias.entries != nullptr) add_bias(bias, *s.lanes, *s.chunk, s.scores);
    mask_scores(*s.lanes, *s.chunk, s.scores, s.maximum);
    visit_rows(panel, views.value, *s.chunk, step, token_of, Along::kFeatures, s.values, *s.value_rows);
    dot(s.dout, *s.value_rows, 1.0f, s.dscores);
    softmax_gradient(s.chunk->keys, s);
    if (drpb != nullptr) add_bias_gradient(bias, *s.lanes, *s.chunk, s.dscores, drpb);
    round_weights(s.chunk->keys, scale, s);
    if constexpr (kTerms<E> == 2)
      visit_rows(panel, views.key, *s.chunk, step, token_of, Along::kTokens, s.key_tokens, *s.key_rows);
    accumulate(reinterpret_cast<const E*>(s.dscores), *s.key_rows, s.dquery);
    sum_rows(panel, views.dkey, s.dkeys, *s.chunk, p, tile, *s.sums);
    outer<E>(s.dscore_rows, s.query_tokens, padded(p.head_dim), *s.sums);
    sum_rows(panel, views.dvalue, s.dvalues, *s.chunk, p, tile, *s.sums);
    outer(reinterpret_cast<const E*>(s.scores), s.dout_tokens, padded(p.value_dim), *s.sums);
  });
  float factors[kLanes];
  for (float& factor : factors) factor = kTerms<E> == 1 ? scale : 1.0f;
  unpack_tile(s.dquery, factors, *s.lanes, views.dquery);
}

// A run of query tiles that ends before `stop`, for every query head that shares the kv head.
template <class T>
void backward_run(const BackwardArgs& args, Tile& tile, int stop, int kv_head, float* drpb,
                  const BackwardScratch<Element<T>>& s) {
  using E = Element<T>;
  const Problem& p = args.problem;
  const int repeats = query_heads_per_kv_head(p);
  const Panel panel = make_panel<E>(p, tile, Side::kQueries, stop, 2 * (p.head_dim + p.value_dim));
  const auto token_of = [&](const int (&i)[kAxes]) { return key_token(p, tile, i); };
  const BackwardViews<T> views = make_backward_views<T>(args, tile.batch, kv_head * repeats);
  fill_panel(panel, views.key, p.axis[2].dilation, token_of, Along::kFeatures, s.keys);
  fill_panel(panel, views.value, p.axis[2].dilation, token_of, Along::kFeatures, s.values);
  if constexpr (kTerms<E> == 2)
    fill_panel(panel, views.key, p.axis[2].dilation, token_of, Along::kTokens, s.key_tokens);
  if (panel.resident) {
    memset(s.dkeys, 0, panel_tokens(panel) * p.head_dim * sizeof(float));
    memset(s.dvalues, 0, panel_tokens(panel) * p.value_dim * sizeof(float));
  }
  for (; tile.first[2] < stop; tile.first[2] += p.tile[2]) {
    make_lanes(p, tile, Side::kQueries, *s.lanes);
    visit_pairs<E>(panel, *s.lanes);
    for (tile.head = kv_head * repeats; tile.head < (kv_head + 1) * repeats; ++tile.head)
      backward_tile<T>(args, tile, panel, drpb == nullptr ? nullptr : drpb + int64_t{tile.head} * bias_entries(p), s);
  }
  flush_panel(panel, views.dkey, p, tile, s.dkeys);
  flush_panel(panel, views.dvalue, p, tile, s.dvalues);
}

// All query tiles of one slab of one (batch entry, kv head, dilation group), run by run.
template <class T>
void backward_slab(const BackwardArgs& args, const TileGrid& grid, const Slabs& slabs, int slab, Tile& tile,
                   float* drpb, const BackwardScratch<Element<T>>& scratch) {
  const Problem& p = args.problem;
  const int kv_head = tile.head;
  int from[kAxes] = {0, 0, 0}, to[kAxes] = {grid.tiles[0], grid.tiles[1], grid.tiles[2]}, t[kAxes];
  from[slabs.axis] = slab_start(grid.tiles[slabs.axis], slabs, slab);
  to[slabs.axis] = slab_start(grid.tiles[slabs.axis], slabs, slab + 1);
  for (t[0] = from[0]; t[0] < to[0]; ++t[0])
    for (t[1] = from[1]; t[1] < to[1]; ++t[1])
      for (t[2] = from[2]; t[2] < to[2]; t[2] += grid.run) {
        bool exists = true;
        for (int a = 0; a < kAxes; ++a) {
          tile.first[a] = tile.group[a].queries.start + t[a] * p.tile[a];
          exists &= tile.first[a] < tile.group[a].queries.stop;
        }
        const int tiles = min(grid.run, to[2] - t[2]);
        const int stop = min(tile.first[2] + tiles * p.tile[2], tile.group[2].queries.stop);
        if (exists) backward_run<T>(args, tile, stop, kv_head, drpb, scratch);
      }
}

// Results that are sums start from zero.
inline void clear_sums(const BackwardArgs& args, const Parallel& parallel) {
  const Problem& p = args.problem;
  clear(parallel, static_cast<float*>(args.dkey), p.batch * key_tokens(p) * p.kv_heads * p.head_dim);
  clear(parallel, static_cast<float*>(args.dvalue), p.batch * key_tokens(p) * p.kv_heads * p.value_dim);
  if (args.drpb != nullptr) clear(parallel, args.drpb, int64_t{args.drpb_parts} * p.heads * bias_entries(p));
}

// The gradient tables that a part adds to; null without a bias.
inline float* bias_table_of(const BackwardArgs& args, int64_t part) {
  return args.drpb == nullptr ? nullptr : args.drpb + part * args.problem.heads * bias_entries(args.problem);
}

inline void fused_backward(const BackwardArgs& args, const Parallel& parallel) {
  const Problem& p = args.problem;
  const TileGrid grid = make_tile_grid(p, Side::kQueries, backward_capacity(p), 0);
  const Slabs slabs = choose_slabs(p, grid);
  clear_sums(args, parallel);
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    for_each_slab(p, parallel, slabs, args.drpb_parts, [&](int slab, Tile& tile, int64_t part, char* memory) {
      Arena arena{memory};
      const auto scratch = make_backward_scratch<Element<T>>(arena, p);
      backward_slab<T>(args, grid, slabs, slab, tile, bias_table_of(args, part), scratch);
    });
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
