// SPDX-License-Identifier: Apache-2.0
// Fused forward of the row kernels: all scores of a block at once, then their softmax, then the values.
//
//   S = scale q k^T + rpb, -inf outside the windows;   m = rowmax S
//   P = exp(S - m);   l = rowsum P;   out = P V / l;   lse = m + log l
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "cpu/definition.h"
#include "cpu/host/kernels.h"
#include "cpu/rows/block.h"
#include "cpu/rows/grid.h"
#include "cpu/rows/hidden.h"
#include "cpu/rows/pack.h"
#include "cpu/rows/ring.h"
#include "cpu/rows/scores.h"
#include "cpu/rows/sums.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/parallel.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/forward.h"
#include "cpu/tiles/panel.h"
#include "cpu/tiles/scores.h"
#include "cpu/tiles/view.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

constexpr int64_t kForwardPanel = 120 << 10;  // floats, 480 KB: about a common L2

inline RowFeatures forward_features(const Problem& problem) {
  return {padded(problem.head_dim) + 1, padded(problem.value_dim), kForwardPanel};  // 1: the mask
}

template <class Packed>
struct RowForwardScratch {
  Packed* query;        // [row][dim][kWidth]
  float* out;           // [row][lane][dim]
  Packed* keys;         // ring of transposed rows
  const uint8_t* mask;  // of the batch entry, or null
  float* hidden;        // ring for it, behind the keys
  Packed* values;       // ring of natural rows, behind that
  float* scores;        // [row][key row][column][kWidth]; their weights take their place
  float* maximum;       // [row][kWidth]
  float* sum;           // [row][kWidth], of exp(score - maximum)
};

template <class Packed>
inline RowForwardScratch<Packed> make_row_forward_scratch(Arena& arena, const Problem& problem) {
  constexpr int64_t kLanesOfBlock = int64_t{kBlockRows} * kWidth;
  RowForwardScratch<Packed> scratch{};
  scratch.query = arena.take<Packed>(padded(problem.head_dim) * kLanesOfBlock);
  scratch.out = arena.take<float>(padded(problem.value_dim) * kLanesOfBlock);
  scratch.keys = arena.take<Packed>(row_panel(problem, forward_features(problem)));
  scratch.scores = arena.take<float>(row_scores(problem));
  scratch.maximum = arena.take<float>(kLanesOfBlock);
  scratch.sum = arena.take<float>(kLanesOfBlock);
  return scratch;
}

inline int64_t row_forward_scratch(const Problem& problem) {
  return arena_bytes([&](Arena& arena) { make_row_forward_scratch<float>(arena, problem); });
}

// Packs the key rows of a block that are not there yet.
template <class T>
inline void fill_forward(const Problem& problem, const ForwardViews<T>& views, const RowUnit& unit,
                         const RowBlock& block, KeyRing& ring, const RowForwardScratch<PackedOf<T>>& scratch) {
  const int count = extent(ring.columns), dilation = problem.axis[2].dilation;
  fill_rows(problem, unit, block, ring, [&](int z, int y, int64_t token) {
    pack_transposed(token_run(views.key, token, dilation, count), 1.0f,
                    transposed_row(ring, scratch.keys, problem.head_dim, z, y), transposed_pitch(count));
    pack_natural(token_run(views.value, token, dilation, count), 1.0f,
                 natural_row(ring, scratch.values, problem.value_dim, z, y));
    pack_hidden(ring, scratch.mask, token, dilation, hidden_row(ring, scratch.hidden, z, y));
  });
}

// What becomes of the scores of a key row: bias, masks, memory, and the maximum of every lane.
template <class Packed>
struct ForwardFinish {
  const LaneTile& tile;
  bool biased;
  float scale;  // of pairs; floats are scaled in the packed queries
  const float* bias[kBlockRows];
  float *scores[kBlockRows], *maximum[kBlockRows];
  HiddenColumns hidden;

  template <int kRows, int kColumns>
  [[gnu::always_inline]] void operator()(int first, Vec (&sum)[kRows][kColumns]) const {
    const bool plain = tile.full && !biased && !hidden;
    if constexpr (kTerms<Packed> == 2) scale_scores(scale, sum);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      Vec largest = load(maximum[r]);
#pragma GCC unroll 16
      for (int c = 0; c < kColumns; ++c) {
        if (!plain) {
          if (biased) sum[r][c] += splat(bias[r][first + c] * kLog2E);
          if (hidden) sum[r][c] = hidden.hide(first + c, sum[r][c]);
          if (!tile.full) sum[r][c] = select(in_window(tile, first + c), sum[r][c], splat(-INFINITY));
        }
        store(scores[r] + (first + c) * kWidth, sum[r][c]);
        largest = vmax(largest, sum[r][c]);
      }
      store(maximum[r], largest);
    }
  }
};

// Scores of a block and a lane tile, masked, and the maximum of every lane.
template <class Packed>
inline void block_scores(const BlockLanes& lanes, const BiasTable& bias, const KeyRing& ring,
                         const RowForwardScratch<Packed>& scratch) {
  const RowBlock& block = lanes.block;
  const LaneTile& tile = lanes.tile;
  const int dim = lanes.problem.head_dim;
  for (int i = 0; i < block.count * kWidth; ++i) scratch.maximum[i] = kLowest;
  const ptrdiff_t pitch = transposed_pitch(extent(ring.columns));
  const int elements = row_elements<Packed>(Along::kFeatures, dim);
  ForwardFinish<Packed> finish{tile, bias.entries != nullptr, score_factor(lanes.problem), {}, {}, {}, {}};
  for_each_key_row(block, tile, [&](int z, int y, const SeenBy& seen) {
    finish.hidden = hidden_columns(ring, tile, scratch.mask, z, y, scratch.hidden);
    const Packed* queries[kBlockRows];
    for (int i = 0; i < seen.count; ++i) {
      const int row = seen.row[i];
      queries[i] = block_row(scratch.query, row, dim);
      finish.scores[i] = scratch.scores + seen.at[i] + tile.margin * kWidth;
      finish.maximum[i] = scratch.maximum + row * kWidth;
      finish.bias[i] = bias_entry(bias, z - block.row[row].z, y - block.row[row].y, tile.low);
    }
    // The query rows that see this key row share what is loaded of it.
    const Packed* keys = key_columns(ring, tile, transposed_row(ring, scratch.keys, dim, z, y));
    score_rows(seen.count, finish, tile, ScoreOperands<Packed>{queries, keys, pitch, elements});
  });
}

// scores -> exp(scores - maximum) with zeros in the margins, and their sum.
inline void exponentiate(const LaneTile& tile, int rows, float* scores, const float* maximum, float* sum) {
  clear_margins(tile, rows, scores);
  const Vec largest = load(maximum);
  Vec total = {};
  for (int row = 0; row < rows; ++row, scores += tile.pitch) {
    Vec partial = {};
    for (int column = 0; column < tile.columns; ++column) {
      float* score = scores + (tile.margin + column) * kWidth;
      const Vec weight = exp2(load(score) - largest);
      store(score, weight);
      partial += weight;
    }
    total += partial;
  }
  store(sum, total);
}

// The softmax of a block: its scores become weights, of pairs rounded.
template <class Packed>
inline void block_softmax(const RowBlock& block, const LaneTile& tile, const RowForwardScratch<Packed>& scratch) {
  // The scores of a query row are next to one another: one maximum and one sum for all of its key rows.
  float* scores = scratch.scores;
  for (int r = 0; r < block.count; ++r) {
    const int rows = key_rows(block.row[r]);
    exponentiate(tile, rows, scores, scratch.maximum + r * kWidth, scratch.sum + r * kWidth);
    if constexpr (kTerms<Packed> == 2) pair_columns(tile, rows, 1.0f, scores, reinterpret_cast<Packed*>(scores));
    scores += score_floats(block.row[r], tile);
  }
}

// out = P V / l;   lse = m + log l. Rows that are not finite, for example without a key, by definition.
template <class T>
inline void store_block(const ForwardArgs& args, const BlockLanes& lanes, const ForwardViews<T>& views,
                        const RowForwardScratch<PackedOf<T>>& scratch) {
  const int count = lanes.tile.count, dilation = lanes.problem.axis[2].dilation;
  for (int r = 0; r < lanes.block.count; ++r) {
    const int64_t first = first_query(lanes, lanes.block.row[r]);
    const float *maximum = scratch.maximum + r * kWidth, *sum = scratch.sum + r * kWidth;
    alignas(64) float inverse[kWidth];
    store(inverse, splat(1.0f) / load(sum));
    for (int lane = 0; lane < count; ++lane) {
      float& lse = views.lse.base[(first + int64_t{lane} * dilation) * views.lse.stride];
      lse = maximum[lane] * kLn2 + logf(sum[lane]);
    }
    const auto define = [&](int lane) {
      define_attention(args, query_row(lanes.problem, lanes.unit.tile, first + int64_t{lane} * dilation));
    };
    unpack_natural(
        block_row(scratch.out, r, lanes.problem.value_dim), [&](int lane) { return inverse[lane]; },
        token_run(views.out, first, dilation, count), define);
  }
}

template <class T>
inline void forward_block(const ForwardArgs& args, const BlockLanes& lanes, const KeyRing& ring,
                          const RowForwardScratch<PackedOf<T>>& scratch) {
  using Packed = PackedOf<T>;
  const Problem& problem = args.problem;
  const Tile& tile = lanes.unit.tile;
  const ForwardViews<T> views = make_forward_views<T>(args, tile.batch, tile.head);
  for (int r = 0; r < lanes.block.count; ++r) {
    const int64_t first = first_query(lanes, lanes.block.row[r]);
    pack_transposed(token_run(views.query, first, problem.axis[2].dilation, lanes.tile.count), score_factor(problem),
                    block_row(scratch.query, r, problem.head_dim), kWidth);
  }
  block_scores(lanes, make_bias_table(problem, args.rpb, tile.head), ring, scratch);
  block_softmax(lanes.block, lanes.tile, scratch);
  row_products<Packed>(
      lanes, {ring, reinterpret_cast<const Packed*>(scratch.scores), scratch.values, scratch.out, problem.value_dim});
  store_block(args, lanes, views, scratch);
}

template <class T>
void forward_unit(const ForwardArgs& args, RowUnit& unit, char* memory) {
  using Packed = PackedOf<T>;
  const Problem& problem = args.problem;
  Arena arena{memory};
  auto scratch = make_row_forward_scratch<Packed>(arena, problem);
  const int first_head = unit.tile.head * query_heads_per_kv_head(problem);
  const auto views = make_forward_views<T>(args, unit.tile.batch, first_head);
  KeyRing ring = make_ring(problem, unit);
  scratch.mask = mask_of_batch(problem, args.key_mask, unit.tile.batch);
  Packed* behind = scratch.keys + ring_floats(ring, problem.head_dim);
  scratch.hidden = reinterpret_cast<float*>(behind);
  scratch.values = behind + hidden_floats(ring);
  for_each_lane_tile(
      problem, unit, args.rpb != nullptr,
      [&](const RowBlock& block) { fill_forward(problem, views, unit, block, ring, scratch); },
      [&](const BlockLanes& lanes) { forward_block<T>(args, lanes, ring, scratch); });
}

inline void row_forward(const ForwardArgs& args, const Parallel& parallel) {
  with_half_or_single(args.dtype, [&](auto element) {
    for_each_row_unit(args.problem, forward_features(args.problem), parallel,
                      [&](RowUnit& unit, char* memory) { forward_unit<decltype(element)>(args, unit, memory); });
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
