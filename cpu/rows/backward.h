// SPDX-License-Identifier: Apache-2.0
// Fused backward of the row kernels: the same five products as cpu/tiles/backward.h, over rows.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cpu/definition.h"
#include "cpu/host/kernels.h"
#include "cpu/rows/block.h"
#include "cpu/rows/grid.h"
#include "cpu/rows/hidden.h"
#include "cpu/rows/key_sums.h"
#include "cpu/rows/pack.h"
#include "cpu/rows/ring.h"
#include "cpu/rows/scores.h"
#include "cpu/rows/sums.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/parallel.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/backward_operands.h"
#include "cpu/tiles/panel.h"
#include "cpu/tiles/scores.h"
#include "cpu/tiles/slabs.h"
#include "cpu/tiles/tile.h"
#include "cpu/tiles/view.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

constexpr int64_t kBackwardPanel = 190 << 10;  // floats, 760 KB

// Keys and values transposed for the scores, the mask, keys as rows for dq.
inline RowFeatures backward_features(const Problem& problem) {
  return {padded(problem.head_dim) + padded(problem.value_dim) + 1, padded(problem.head_dim), kBackwardPanel};
}

template <class Packed>
struct RowBackwardScratch {
  Packed *query, *dout;            // [row][dim][kWidth]
  Packed *query_rows, *dout_rows;  // [row][lane][dim]
  float* dquery;                   // [row][lane][dim]
  Packed *keys, *values;           // rings, transposed
  Packed* key_rows;                // ring, natural
  float *scores, *dscores;         // [row][key row][column][kWidth]
  float *lse, *delta;              // [row][kWidth]
  const uint8_t* mask;             // of the batch entry, or null
  float* hidden;                   // ring for it
  LeftOut* left_out;               // of all threads
};

template <class Packed>
inline RowBackwardScratch<Packed> make_row_backward_scratch(Arena& arena, const Problem& problem) {
  constexpr int64_t kLanesOfBlock = int64_t{kBlockRows} * kWidth;
  const int64_t key_floats = padded(problem.head_dim) * kLanesOfBlock;
  const int64_t value_floats = padded(problem.value_dim) * kLanesOfBlock;
  RowBackwardScratch<Packed> scratch{};
  scratch.query = arena.take<Packed>(key_floats);
  scratch.dout = arena.take<Packed>(value_floats);
  scratch.query_rows = arena.take<Packed>(key_floats);
  scratch.dout_rows = arena.take<Packed>(value_floats);
  scratch.dquery = arena.take<float>(key_floats);
  scratch.keys = arena.take<Packed>(row_panel(problem, backward_features(problem)));
  scratch.scores = arena.take<float>(row_scores(problem));
  scratch.dscores = arena.take<float>(row_scores(problem));
  scratch.lse = arena.take<float>(kLanesOfBlock);
  scratch.delta = arena.take<float>(kLanesOfBlock);
  return scratch;
}

inline int64_t row_backward_scratch(const Problem& problem) {
  return arena_bytes([&](Arena& arena) { make_row_backward_scratch<float>(arena, problem); });
}

// Packs the key rows of a block that are not there yet.
template <class T>
inline void fill_backward(const Problem& problem, const BackwardViews<T>& views, const RowUnit& unit,
                          const RowBlock& block, KeyRing& ring, const RowBackwardScratch<PackedOf<T>>& scratch) {
  const int count = extent(ring.columns), pitch = transposed_pitch(count), dilation = problem.axis[2].dilation;
  fill_rows(problem, unit, block, ring, [&](int z, int y, int64_t token) {
    const TokenRun<const T> keys = token_run(views.key, token, dilation, count);
    const TokenRun<const T> values = token_run(views.value, token, dilation, count);
    pack_transposed(keys, 1.0f, transposed_row(ring, scratch.keys, problem.head_dim, z, y), pitch);
    pack_transposed(values, 1.0f, transposed_row(ring, scratch.values, problem.value_dim, z, y), pitch);
    pack_natural(keys, 1.0f, natural_row(ring, scratch.key_rows, problem.head_dim, z, y));
    pack_hidden(ring, scratch.mask, token, dilation, hidden_row(ring, scratch.hidden, z, y));
  });
}

// Scores of a key row become probabilities exp(S - lse), with zeros in the margins.
template <class Packed>
struct ProbabilityFinish {
  const LaneTile& tile;
  bool biased;
  float scale;  // of pairs; floats are scaled in the packed queries
  const float *bias[kBlockRows], *lse[kBlockRows];
  float* scores[kBlockRows];
  HiddenColumns hidden;

  template <int kRows, int kColumns>
  [[gnu::always_inline]] void operator()(int first, Vec (&sum)[kRows][kColumns]) const {
    if constexpr (kTerms<Packed> == 2) scale_scores(scale, sum);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec log_sum = load(lse[r]);
#pragma GCC unroll 16
      for (int c = 0; c < kColumns; ++c) {
        if (biased) sum[r][c] += splat(bias[r][first + c] * kLog2E);
        if (hidden) sum[r][c] = hidden.hide(first + c, sum[r][c]);
        if (!tile.full) sum[r][c] = select(in_window(tile, first + c), sum[r][c], splat(-INFINITY));
        store(scores[r] + (first + c) * kWidth, exp2(sum[r][c] - log_sum));
      }
    }
  }
};

// Gradients of probabilities become gradients of scores, P (dP - delta), and of the bias.
struct GradientFinish {
  const LaneTile& tile;
  bool biased;
  float* drpb[kBlockRows];
  const float *delta[kBlockRows], *scores[kBlockRows];
  float* dscores[kBlockRows];

  template <int kRows, int kColumns>
  [[gnu::always_inline]] void operator()(int first, Vec (&sum)[kRows][kColumns]) const {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec row_delta = load(delta[r]);
#pragma GCC unroll 16
      for (int c = 0; c < kColumns; ++c) {
        const ptrdiff_t at = (first + c) * kWidth;
        Vec gradient = load(scores[r] + at) * (sum[r][c] - row_delta);
        if (!tile.full) gradient = select(in_window(tile, first + c), gradient, Vec{});
        if (biased) gradient = select(load(scores[r] + at) == Vec{}, Vec{}, gradient);  // masked, whatever dP is
        store(dscores[r] + at, gradient);
        if (biased) drpb[r][first + c] += sum_lanes(gradient);
      }
    }
  }
};

// P and dS of a block and a lane tile.
template <class Packed>
inline void block_gradients(const BlockLanes& lanes, const BiasTable& bias, float* drpb, const KeyRing& ring,
                            const RowBackwardScratch<Packed>& scratch) {
  const RowBlock& block = lanes.block;
  const LaneTile& tile = lanes.tile;
  const int dim = lanes.problem.head_dim, value_dim = lanes.problem.value_dim;
  const ptrdiff_t pitch = transposed_pitch(extent(ring.columns)), margin = tile.margin * kWidth;
  const bool biased = bias.entries != nullptr;
  clear_margins(tile, key_rows(block), scratch.scores);
  clear_margins(tile, key_rows(block), scratch.dscores);
  ProbabilityFinish<Packed> probability{tile, biased, score_factor(lanes.problem), {}, {}, {}, {}};
  GradientFinish gradient{tile, biased, {}, {}, {}, {}};
  for_each_key_row(block, tile, [&](int z, int y, const SeenBy& seen) {
    probability.hidden = hidden_columns(ring, tile, scratch.mask, z, y, scratch.hidden);
    const Packed *queries[kBlockRows], *douts[kBlockRows];
    for (int i = 0; i < seen.count; ++i) {
      const int row = seen.row[i];
      queries[i] = block_row(scratch.query, row, dim);
      douts[i] = block_row(scratch.dout, row, value_dim);
      probability.lse[i] = scratch.lse + row * kWidth;
      gradient.delta[i] = scratch.delta + row * kWidth;
      gradient.scores[i] = probability.scores[i] = scratch.scores + seen.at[i] + margin;
      gradient.dscores[i] = scratch.dscores + seen.at[i] + margin;
      // The gradient of an entry lies in drpb where the entry lies in the table.
      if (!biased) continue;
      probability.bias[i] = bias_entry(bias, z - block.row[row].z, y - block.row[row].y, tile.low);
      gradient.drpb[i] = drpb + (probability.bias[i] - bias.entries);
    }
    // S = scale q k^T + rpb;  P = exp(S - lse)
    const Packed* keys = key_columns(ring, tile, transposed_row(ring, scratch.keys, dim, z, y));
    const int key_elements = row_elements<Packed>(Along::kFeatures, dim);
    score_rows(seen.count, probability, tile, ScoreOperands<Packed>{queries, keys, pitch, key_elements});
    // dP = dout v^T;  dS = P (dP - delta), with the P just stored
    const Packed* values = key_columns(ring, tile, transposed_row(ring, scratch.values, value_dim, z, y));
    const int value_elements = row_elements<Packed>(Along::kFeatures, value_dim);
    score_rows(seen.count, gradient, tile, ScoreOperands<Packed>{douts, values, pitch, value_elements});
  });
}

// dq to the scratch memory; dk and dv are added to. Pairs of queries and keys are not scaled, so dS is; P and dS are
// rounded to pairs of the neighbours in each sum.
template <class Packed, class Views>
inline void block_sums(const BlockLanes& lanes, const KeyRing& ring, const Views& views,
                       const RowBackwardScratch<Packed>& scratch) {
  const Problem& problem = lanes.problem;
  Packed *scores = reinterpret_cast<Packed*>(scratch.scores), *dscores = reinterpret_cast<Packed*>(scratch.dscores);
  const KeySum<Packed> dkey{dscores, scratch.query_rows, views.dkey};
  const KeySum<Packed> dvalue{scores, scratch.dout_rows, views.dvalue};
  const auto add_to_dquery = [&](const Packed* weights) {
    row_products<Packed>(lanes, {ring, weights, scratch.key_rows, scratch.dquery, problem.head_dim});
  };
  if constexpr (kTerms<Packed> == 1) {
    add_to_dquery(dscores);
    add_key_sums<Packed>(lanes, {dkey, dvalue});
  } else {
    const float scale = static_cast<float>(problem.scale);
    const int rows = key_rows(lanes.block);
    pair_lanes(lanes.tile, rows, 1.0f, scratch.scores);
    add_key_sums<Packed>(lanes, {dvalue});
    pair_columns(lanes.tile, rows, scale, scratch.dscores, scores);  // P is used up: its place is free
    add_to_dquery(scores);
    pair_lanes(lanes.tile, rows, scale, scratch.dscores);
    add_key_sums<Packed>(lanes, {dkey});
  }
}

// Packs the queries and their cotangents, both transposed and as rows, and the statistics of their softmax.
template <class T>
inline void load_block_queries(const BlockLanes& lanes, const BackwardViews<T>& views,
                               const RowBackwardScratch<PackedOf<T>>& scratch) {
  const Problem& problem = lanes.problem;
  const int count = lanes.tile.count, dilation = problem.axis[2].dilation;
  for (int r = 0; r < lanes.block.count; ++r) {
    const int64_t first = first_query(lanes, lanes.block.row[r]);
    const TokenRun<const T> queries = token_run(views.query, first, dilation, count);
    const TokenRun<const T> douts = token_run(views.dout, first, dilation, count);
    pack_transposed(queries, score_factor(problem), block_row(scratch.query, r, problem.head_dim), kWidth);
    pack_transposed(douts, 1.0f, block_row(scratch.dout, r, problem.value_dim), kWidth);
    pack_natural(queries, static_cast<float>(problem.scale), block_row(scratch.query_rows, r, problem.head_dim));
    pack_natural(douts, 1.0f, block_row(scratch.dout_rows, r, problem.value_dim));
    for (int lane = 0; lane < kWidth; ++lane) {
      const int64_t token = first + int64_t{min(lane, count - 1)} * dilation;
      scratch.lse[r * kWidth + lane] = tile_lse(views.lse.base[token * views.lse.stride], *scratch.left_out);
      scratch.delta[r * kWidth + lane] = views.delta.base[token * views.delta.stride];
    }
  }
}

// drpb: gradient table of the block's head, or null.
template <class T>
inline void backward_block(const BackwardArgs& args, const BlockLanes& lanes, const KeyRing& ring, float* drpb,
                           const RowBackwardScratch<PackedOf<T>>& scratch) {
  const Problem& problem = args.problem;
  const Tile& tile = lanes.unit.tile;
  const BackwardViews<T> views = make_backward_views<T>(args, tile.batch, tile.head);
  load_block_queries(lanes, views, scratch);
  block_gradients(lanes, make_bias_table(problem, args.rpb, tile.head), drpb, ring, scratch);
  block_sums(lanes, ring, views, scratch);
  const float factor = kTerms<PackedOf<T>> == 1 ? static_cast<float>(problem.scale) : 1.0f;
  for (int r = 0; r < lanes.block.count; ++r) {
    const int64_t first = first_query(lanes, lanes.block.row[r]);
    unpack_natural(
        block_row(scratch.dquery, r, problem.head_dim), [&](int) { return factor; },
        token_run(views.dquery, first, problem.axis[2].dilation, lanes.tile.count),
        [&](int lane) {
          scratch.left_out->keys = true;
          define_query_gradient(args, query_row(problem, tile, first + int64_t{lane} * problem.axis[2].dilation));
        });
  }
}

template <class T>
void backward_unit(const BackwardArgs& args, RowUnit& unit, float* drpb, RowBackwardScratch<PackedOf<T>> scratch) {
  const Problem& problem = args.problem;
  const int first_head = unit.tile.head * query_heads_per_kv_head(problem);
  const auto views = make_backward_views<T>(args, unit.tile.batch, first_head);
  KeyRing ring = make_ring(problem, unit);
  scratch.values = scratch.keys + ring_floats(ring, problem.head_dim);
  PackedOf<T>* behind = scratch.values + ring_floats(ring, problem.value_dim);
  scratch.hidden = reinterpret_cast<float*>(behind);
  scratch.key_rows = behind + hidden_floats(ring);
  scratch.mask = mask_of_batch(problem, args.key_mask, unit.tile.batch);
  for_each_lane_tile(
      problem, unit, args.rpb != nullptr,
      [&](const RowBlock& block) { fill_backward(problem, views, unit, block, ring, scratch); },
      [&](const BlockLanes& lanes) {
        backward_block<T>(args, lanes, ring, bias_table_of_head(problem, drpb, unit.tile.head), scratch);
      });
}

inline void row_backward(const BackwardArgs& args, const Parallel& parallel) {
  const Problem& problem = args.problem;
  const SlabbedGrid rows = make_row_slabs(problem);
  const int span = make_row_grid(problem, backward_features(problem), 0).span;
  clear_sums(args, parallel);
  LeftOut left_out;
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    const auto body = [&](int slab, const Tile& tile, int64_t part, char* memory) {
      Arena arena{memory};
      auto scratch = make_row_backward_scratch<PackedOf<T>>(arena, problem);
      scratch.left_out = &left_out;
      float* drpb = bias_table_of(args, part);
      for_each_slab_unit(problem, rows, slab, span, tile,
                         [&](RowUnit& unit) { backward_unit<T>(args, unit, drpb, scratch); });
    };
    for_each_slab(problem, parallel, rows.slabs, args.drpb_parts, body);
  });
  finish_gradients(args, parallel, left_out);
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
