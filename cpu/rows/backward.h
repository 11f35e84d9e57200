// SPDX-License-Identifier: Apache-2.0
// Fused backward of the row kernels: the same five products as fused_backward.h, over rows.
#pragma once

#include "cpu/rows/scores.h"
#include "cpu/rows/sums.h"
#include "cpu/tiles/backward.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

constexpr int64_t kBackwardPanel = 190 << 10;  // floats, 760 KB

// Keys and values transposed for the scores, keys as rows for dq.
inline RowFeatures backward_features(const Problem& p) {
  return {padded(p.head_dim) + padded(p.value_dim), padded(p.head_dim), kBackwardPanel};
}

// E: element of the packed operands.
template <class E>
struct RowBackwardScratch {
  E *query, *dout;            // [row][dim][kWidth]
  E *query_rows, *dout_rows;  // [row][lane][dim]
  float* dquery;              // [row][lane][dim]
  E *keys, *values;           // rings, transposed
  E* key_rows;                // ring, natural
  float *scores, *dscores;    // [row][key row][column][kWidth]
  float *lse, *delta;         // [row][kWidth]
};

template <class E>
inline RowBackwardScratch<E> make_row_backward_scratch(Arena& arena, const Problem& p) {
  constexpr int64_t kLanesOfBlock = int64_t{kBlockRows} * kWidth;
  const int64_t d = padded(p.head_dim) * kLanesOfBlock, e = padded(p.value_dim) * kLanesOfBlock;
  RowBackwardScratch<E> s{};
  s.query = arena.take<E>(d);
  s.dout = arena.take<E>(e);
  s.query_rows = arena.take<E>(d);
  s.dout_rows = arena.take<E>(e);
  s.dquery = arena.take<float>(d);
  s.keys = arena.take<E>(row_panel(p, backward_features(p)));
  s.scores = arena.take<float>(row_scores(p));
  s.dscores = arena.take<float>(row_scores(p));
  s.lse = arena.take<float>(kLanesOfBlock);
  s.delta = arena.take<float>(kLanesOfBlock);
  return s;
}

inline int64_t row_backward_scratch(const Problem& p) {
  return arena_bytes([&](Arena& arena) { make_row_backward_scratch<float>(arena, p); });
}

// Packs the key rows of a block that are not there yet.
template <class T>
inline void fill_backward(const Problem& p, const BackwardViews<T>& views, const RowUnit& unit, const Block& block,
                          Ring& ring, const RowBackwardScratch<Element<T>>& s) {
  const int count = extent(ring.columns), pitch = transposed_pitch(count);
  const int64_t key_step = p.axis[2].dilation * views.key.stride, value_step = p.axis[2].dilation * views.value.stride;
  fill_rows(p, unit, block, ring, [&](int z, int y, int64_t token) {
    const T *key = views.key.base + token * views.key.stride, *value = views.value.base + token * views.value.stride;
    pack_transposed(key, key_step, count, p.head_dim, 1.0f, transposed_row(ring, s.keys, p.head_dim, z, y), pitch);
    pack_transposed(value, value_step, count, p.value_dim, 1.0f, transposed_row(ring, s.values, p.value_dim, z, y),
                    pitch);
    pack_natural(key, key_step, count, p.head_dim, 1.0f, natural_row(ring, s.key_rows, p.head_dim, z, y));
  });
}

// Scores of a key row become probabilities, with zeros in the margins.
template <class E>
struct ProbabilityFinish {
  const LaneTile& tile;
  bool biased;
  float scale;  // of pairs; floats are scaled in the packed queries
  const float *bias[kBlockRows], *lse[kBlockRows];
  float* scores[kBlockRows];

  template <int R, int C>
  [[gnu::always_inline]] void operator()(int first, Vec (&sum)[R][C]) const {
    if constexpr (kTerms<E> == 2) scale_scores(scale, sum);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec l = load(lse[r]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        if (biased) sum[r][c] += splat(bias[r][first + c] * kLog2E);
        if (!tile.full) sum[r][c] = select(in_window(tile, first + c), sum[r][c], splat(-INFINITY));
        store(scores[r] + (first + c) * kWidth, exp2(sum[r][c] - l));
      }
    }
  }
};

// Gradients of probabilities become gradients of scores, and of the bias.
struct GradientFinish {
  const LaneTile& tile;
  bool biased;
  float* dbias[kBlockRows];
  const float *delta[kBlockRows], *scores[kBlockRows];
  float* dscores[kBlockRows];

  template <int R, int C>
  [[gnu::always_inline]] void operator()(int first, Vec (&sum)[R][C]) const {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec d = load(delta[r]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        const ptrdiff_t at = (first + c) * kWidth;
        Vec gradient = load(scores[r] + at) * (sum[r][c] - d);
        if (!tile.full) gradient = select(in_window(tile, first + c), gradient, Vec{});
        store(dscores[r] + at, gradient);
        if (biased) dbias[r][first + c] += sum_lanes(gradient);
      }
    }
  }
};

// P and dS of a block and a lane tile.
template <class E>
inline void block_gradients(const Problem& p, const BiasTable& bias, float* drpb, const Block& block,
                            const LaneTile& tile, const Ring& ring, const RowBackwardScratch<E>& s) {
  const ptrdiff_t pitch = transposed_pitch(extent(ring.columns)), margin = tile.margin * kWidth;
  const bool biased = bias.entries != nullptr;
  const int rows = key_rows(block);
  clear_margins(tile, rows, s.scores);
  clear_margins(tile, rows, s.dscores);
  ProbabilityFinish<E> probability{tile, biased, score_factor(p), {}, {}, {}};
  GradientFinish gradient{tile, biased, {}, {}, {}, {}};
  for_each_key_row(block, tile, [&](int z, int y, const SeenBy& seen) {
    const E *queries[kBlockRows], *douts[kBlockRows];
    for (int i = 0; i < seen.count; ++i) {
      const int r = seen.row[i];
      queries[i] = s.query + int64_t{r} * padded(p.head_dim) * kWidth;
      douts[i] = s.dout + int64_t{r} * padded(p.value_dim) * kWidth;
      probability.lse[i] = s.lse + r * kWidth;
      gradient.delta[i] = s.delta + r * kWidth;
      gradient.scores[i] = probability.scores[i] = s.scores + seen.at[i] + margin;
      gradient.dscores[i] = s.dscores + seen.at[i] + margin;
      if (!biased) continue;
      probability.bias[i] = bias_entry(bias, z - block.row[r].z, y - block.row[r].y, tile.low);
      gradient.dbias[i] = drpb + (probability.bias[i] - bias.entries);
    }
    const E* keys = key_columns(ring, tile, transposed_row(ring, s.keys, p.head_dim, z, y));
    const int key_elements = row_elements<E>(Along::kFeatures, p.head_dim);
    score_rows(seen.count, probability, tile, ScoreOperands<E>{queries, keys, pitch, key_elements});
    const E* values = key_columns(ring, tile, transposed_row(ring, s.values, p.value_dim, z, y));
    const int value_elements = row_elements<E>(Along::kFeatures, p.value_dim);
    score_rows(seen.count, gradient, tile, ScoreOperands<E>{douts, values, pitch, value_elements});
  });
}

// dq to the scratch memory; dk and dv are added to. Pairs of queries and keys are not scaled, so dS is; P and dS are
// rounded to pairs of the neighbours in each sum.
template <class E, class Views>
inline void block_sums(const Problem& p, const RowUnit& unit, const Block& block, const LaneTile& tile,
                       const Ring& ring, const Views& views, const RowBackwardScratch<E>& s) {
  E *scores = reinterpret_cast<E*>(s.scores), *dscores = reinterpret_cast<E*>(s.dscores);
  if constexpr (kTerms<E> == 1) {
    row_products(p.head_dim, block, tile, ring, dscores, s.key_rows, s.dquery);
    add_key_sums<E>(p, unit, block, tile, {{dscores, s.query_rows, views.dkey}, {scores, s.dout_rows, views.dvalue}});
  } else {
    const float scale = static_cast<float>(p.scale);
    const int rows = key_rows(block);
    pair_lanes(tile, rows, 1.0f, s.scores);
    add_key_sums<E>(p, unit, block, tile, {{scores, s.dout_rows, views.dvalue}});
    pair_columns(tile, rows, scale, s.dscores, scores);
    row_products(p.head_dim, block, tile, ring, scores, s.key_rows, s.dquery);
    pair_lanes(tile, rows, scale, s.dscores);
    add_key_sums<E>(p, unit, block, tile, {{dscores, s.query_rows, views.dkey}});
  }
}

template <class T>
inline void backward_block(const BackwardArgs& args, const RowUnit& unit, const Block& block, const LaneTile& tile,
                           const Ring& ring, float* drpb, const RowBackwardScratch<Element<T>>& s) {
  const Problem& p = args.problem;
  const BackwardViews<T> views = make_backward_views<T>(args, unit.tile.batch, unit.tile.head);
  const BiasTable bias = make_bias_table(p, args.rpb, unit.tile.head);
  const int64_t step = p.axis[2].dilation;
  const int d = padded(p.head_dim), e = padded(p.value_dim);
  const float scale = static_cast<float>(p.scale);
  int64_t tokens[kBlockRows];
  for (int r = 0; r < block.count; ++r) {
    const int position[kAxes] = {block.row[r].z, block.row[r].y, tile.first};
    const int64_t token = tokens[r] = query_token(p, unit.tile, position);
    const T *query = views.query.base + token * views.query.stride, *dout = views.dout.base + token * views.dout.stride;
    const int64_t query_step = step * views.query.stride, dout_step = step * views.dout.stride;
    pack_transposed(query, query_step, tile.count, p.head_dim, score_factor(p), s.query + int64_t{r} * d * kWidth,
                    kWidth);
    pack_transposed(dout, dout_step, tile.count, p.value_dim, 1.0f, s.dout + int64_t{r} * e * kWidth, kWidth);
    pack_natural(query, query_step, tile.count, p.head_dim, scale, s.query_rows + int64_t{r} * kWidth * d);
    pack_natural(dout, dout_step, tile.count, p.value_dim, 1.0f, s.dout_rows + int64_t{r} * kWidth * e);
    for (int lane = 0; lane < kWidth; ++lane) {
      const int64_t at = (token + min(lane, tile.count - 1) * step) * p.heads;
      s.lse[r * kWidth + lane] = views.lse.base[at] * kLog2E;
      s.delta[r * kWidth + lane] = views.delta.base[at];
    }
  }
  block_gradients(p, bias, drpb, block, tile, ring, s);
  block_sums(p, unit, block, tile, ring, views, s);
  const float factor = kTerms<Element<T>> == 1 ? scale : 1.0f;
  for (int r = 0; r < block.count; ++r)
    unpack_natural(
        s.dquery + int64_t{r} * kWidth * d, tile.count, p.head_dim, [&](int) { return factor; },
        views.dquery.base + tokens[r] * views.dquery.stride, step * views.dquery.stride);
}

template <class T>
void backward_unit(const BackwardArgs& args, RowUnit& unit, float* drpb, RowBackwardScratch<Element<T>> s) {
  const Problem& p = args.problem;
  const auto views = make_backward_views<T>(args, unit.tile.batch, unit.tile.head * query_heads_per_kv_head(p));
  Ring ring = make_ring(p, unit);
  s.values = s.keys + ring_floats(ring, p.head_dim);
  s.key_rows = s.values + ring_floats(ring, p.value_dim);
  for_each_lane_tile(
      p, unit, args.rpb != nullptr, [&](const Block& block) { fill_backward(p, views, unit, block, ring, s); },
      [&](const Block& block, const LaneTile& tile) {
        float* table = drpb == nullptr ? nullptr : drpb + int64_t{unit.tile.head} * bias_entries(p);
        backward_block<T>(args, unit, block, tile, ring, table, s);
      });
}

inline void row_backward(const BackwardArgs& args, const Parallel& parallel) {
  const Problem& p = args.problem;
  const RowSlabs rows = make_row_slabs(p);
  const int span = make_row_grid(p, backward_features(p), 0).span;
  clear_sums(args, parallel);
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    for_each_slab(
        p, parallel, rows.slabs, args.drpb_parts, [&](int slab, const Tile& tile, int64_t part, char* memory) {
          Arena arena{memory};
          const auto s = make_row_backward_scratch<Element<T>>(arena, p);
          for_each_slab_unit(p, rows.grid, rows.slabs, slab, span, tile,
                             [&](RowUnit& unit) { backward_unit<T>(args, unit, bias_table_of(args, part), s); });
        });
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
