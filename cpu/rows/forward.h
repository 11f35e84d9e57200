// SPDX-License-Identifier: Apache-2.0
// Fused forward of the row kernels: all scores of a block at once, then their softmax, then the values.
#pragma once

#include "cpu/rows/scores.h"
#include "cpu/rows/sums.h"
#include "cpu/tiles/forward.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

constexpr int64_t kForwardPanel = 120 << 10;  // floats, 480 KB: about a common L2

inline RowFeatures forward_features(const Problem& p) {
  return {padded(p.head_dim), padded(p.value_dim), kForwardPanel};
}

// E: element of the packed operands.
template <class E>
struct RowForwardScratch {
  E* query;              // [row][dim][kWidth]
  float* out;            // [row][lane][dim]
  E *keys, *values;      // rings: transposed and natural
  float* scores;         // [row][key row][column][kWidth]; their weights take their place
  float *maximum, *sum;  // [row][kWidth]
};

template <class E>
inline RowForwardScratch<E> make_row_forward_scratch(Arena& arena, const Problem& p) {
  constexpr int64_t kLanesOfBlock = int64_t{kBlockRows} * kWidth;
  RowForwardScratch<E> s{};
  s.query = arena.take<E>(padded(p.head_dim) * kLanesOfBlock);
  s.out = arena.take<float>(padded(p.value_dim) * kLanesOfBlock);
  s.keys = arena.take<E>(row_panel(p, forward_features(p)));
  s.scores = arena.take<float>(row_scores(p));
  s.maximum = arena.take<float>(kLanesOfBlock);
  s.sum = arena.take<float>(kLanesOfBlock);
  return s;
}

inline int64_t row_forward_scratch(const Problem& p) {
  return arena_bytes([&](Arena& arena) { make_row_forward_scratch<float>(arena, p); });
}

// Packs the key rows of a block that are not there yet.
template <class T>
inline void fill_forward(const Problem& p, const ForwardViews<T>& views, const RowUnit& unit, const Block& block,
                         Ring& ring, const RowForwardScratch<Element<T>>& s) {
  const int count = extent(ring.columns);
  const int64_t key_step = p.axis[2].dilation * views.key.stride, value_step = p.axis[2].dilation * views.value.stride;
  fill_rows(p, unit, block, ring, [&](int z, int y, int64_t token) {
    pack_transposed(views.key.base + token * views.key.stride, key_step, count, p.head_dim, 1.0f,
                    transposed_row(ring, s.keys, p.head_dim, z, y), transposed_pitch(count));
    pack_natural(views.value.base + token * views.value.stride, value_step, count, p.value_dim, 1.0f,
                 natural_row(ring, s.values, p.value_dim, z, y));
  });
}

// What becomes of the scores of a key row: bias, mask, memory, and the maximum of every lane.
template <class E>
struct ForwardFinish {
  const LaneTile& tile;
  bool biased;
  float scale;  // of pairs; floats are scaled in the packed queries
  const float* bias[kBlockRows];
  float *scores[kBlockRows], *maximum[kBlockRows];

  template <int R, int C>
  [[gnu::always_inline]] void operator()(int first, Vec (&sum)[R][C]) const {
    const bool plain = tile.full && !biased;
    if constexpr (kTerms<E> == 2) scale_scores(scale, sum);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      Vec m = load(maximum[r]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        if (!plain) {
          if (biased) sum[r][c] += splat(bias[r][first + c] * kLog2E);
          if (!tile.full) sum[r][c] = select(in_window(tile, first + c), sum[r][c], splat(-INFINITY));
        }
        store(scores[r] + (first + c) * kWidth, sum[r][c]);
        m = vmax(m, sum[r][c]);
      }
      store(maximum[r], m);
    }
  }
};

// Scores of a block and a lane tile, masked, and the maximum of every lane.
template <class E>
inline void block_scores(const Problem& p, const BiasTable& bias, const Block& block, const LaneTile& tile,
                         const Ring& ring, const RowForwardScratch<E>& s) {
  for (int i = 0; i < block.count * kWidth; ++i) s.maximum[i] = kLowest;
  const ptrdiff_t pitch = transposed_pitch(extent(ring.columns));
  const int elements = row_elements<E>(Along::kFeatures, p.head_dim);
  ForwardFinish<E> finish{tile, bias.entries != nullptr, score_factor(p), {}, {}, {}};
  for_each_key_row(block, tile, [&](int z, int y, const SeenBy& seen) {
    const E* queries[kBlockRows];
    for (int i = 0; i < seen.count; ++i) {
      const int r = seen.row[i];
      queries[i] = s.query + int64_t{r} * padded(p.head_dim) * kWidth;
      finish.scores[i] = s.scores + seen.at[i] + tile.margin * kWidth;
      finish.maximum[i] = s.maximum + r * kWidth;
      finish.bias[i] = bias_entry(bias, z - block.row[r].z, y - block.row[r].y, tile.low);
    }
    const E* keys = key_columns(ring, tile, transposed_row(ring, s.keys, p.head_dim, z, y));
    score_rows(seen.count, finish, tile, ScoreOperands<E>{queries, keys, pitch, elements});
  });
}

// scores -> exp(scores - maximum) with zeros in the margins, and their sum.
inline void exponentiate(const LaneTile& tile, int rows, float* scores, const float* maximum, float* sum) {
  clear_margins(tile, rows, scores);
  const Vec m = load(maximum);
  Vec total = {};
  for (int row = 0; row < rows; ++row, scores += tile.pitch) {
    Vec partial = {};
    for (int c = 0; c < tile.columns; ++c) {
      float* s = scores + (tile.margin + c) * kWidth;
      const Vec e = exp2(load(s) - m);
      store(s, e);
      partial += e;
    }
    total += partial;
  }
  store(sum, total);
}

template <class T>
inline void forward_block(const ForwardArgs& args, const RowUnit& unit, const Block& block, const LaneTile& tile,
                          const Ring& ring, const RowForwardScratch<Element<T>>& s) {
  using E = Element<T>;
  const Problem& p = args.problem;
  const ForwardViews<T> views = make_forward_views<T>(args, unit.tile.batch, unit.tile.head);
  const BiasTable bias = make_bias_table(p, args.rpb, unit.tile.head);
  const int64_t step = p.axis[2].dilation;
  const auto token = [&](const QueryRow& row) {
    const int position[kAxes] = {row.z, row.y, tile.first};
    return query_token(p, unit.tile, position);
  };
  for (int r = 0; r < block.count; ++r)
    pack_transposed(views.query.base + token(block.row[r]) * views.query.stride, step * views.query.stride, tile.count,
                    p.head_dim, score_factor(p), s.query + int64_t{r} * padded(p.head_dim) * kWidth, kWidth);
  block_scores(p, bias, block, tile, ring, s);
  float* scores = s.scores;
  for (int r = 0; r < block.count; ++r) {
    const int rows = key_rows(block.row[r]);
    exponentiate(tile, rows, scores, s.maximum + r * kWidth, s.sum + r * kWidth);
    if constexpr (kTerms<E> == 2) pair_columns(tile, rows, 1.0f, scores, reinterpret_cast<E*>(scores));
    scores += int64_t{rows} * tile.pitch;
  }
  row_products(p.value_dim, block, tile, ring, reinterpret_cast<const E*>(s.scores), s.values, s.out);
  for (int r = 0; r < block.count; ++r) {
    const int64_t first = token(block.row[r]);
    alignas(64) float inverse[kWidth];
    store(inverse, splat(1.0f) / load(s.sum + r * kWidth));
    unpack_natural(
        s.out + int64_t{r} * kWidth * padded(p.value_dim), tile.count, p.value_dim,
        [&](int lane) { return inverse[lane]; }, views.out.base + first * views.out.stride, step * views.out.stride);
    for (int lane = 0; lane < tile.count; ++lane)
      views.lse.base[(first + lane * step) * views.lse.stride] =
          s.maximum[r * kWidth + lane] * kLn2 + logf(s.sum[r * kWidth + lane]);
  }
}

template <class T>
void forward_unit(const ForwardArgs& args, RowUnit& unit, char* memory) {
  const Problem& p = args.problem;
  Arena arena{memory};
  auto s = make_row_forward_scratch<Element<T>>(arena, p);
  const auto views = make_forward_views<T>(args, unit.tile.batch, unit.tile.head * query_heads_per_kv_head(p));
  Ring ring = make_ring(p, unit);
  s.values = s.keys + ring_floats(ring, p.head_dim);
  for_each_lane_tile(
      p, unit, args.rpb != nullptr, [&](const Block& block) { fill_forward(p, views, unit, block, ring, s); },
      [&](const Block& block, const LaneTile& tile) { forward_block<T>(args, unit, block, tile, ring, s); });
}

inline void row_forward(const ForwardArgs& args, const Parallel& parallel) {
  with_half_or_single(args.dtype, [&](auto element) {
    for_each_row_unit(args.problem, forward_features(args.problem), parallel,
                      [&](RowUnit& unit, char* memory) { forward_unit<decltype(element)>(args, unit, memory); });
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
