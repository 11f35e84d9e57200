// SPDX-License-Identifier: Apache-2.0
// The rows of the row kernels: they take windows of which a block's scores, and the packed keys that it visits, fit
// into the scratch memory of a worker.
#pragma once

#include "cpu/rows/backward.h"
#include "cpu/rows/forward.h"
#include "cpu/rows/gemm.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

inline void say_room(const Problem& p, const RowFeatures& features, Text& text) {
  const int64_t panel = row_panel_floats(p, 1, features);
  const int rows = p.tile[0] * p.tile[1];
  if (row_scores(p) > kRowScores)
    say(text, "it takes windows of which the scores of a block of %d x %d queries fit into %lld floats, not %lld", rows,
        kWidth, static_cast<long long>(kRowScores), static_cast<long long>(row_scores(p)));
  else if (panel > features.capacity)
    say(text,
        "it takes windows of which the keys and values for a block of %d x %d queries fit into %lld floats, not %lld",
        rows, kWidth, static_cast<long long>(features.capacity), static_cast<long long>(panel));
}

inline RowFeatures row_features(const Problem& p, Pass pass) {
  return pass == Pass::kForward    ? forward_features(p)
         : pass == Pass::kBackward ? backward_features(p)
                                   : gemm_features(p, pass);
}

template <Pass pass>
void rows_obstacle(const Query& query, const Tiles& tiles, Text& text) {
  const Problem p = with_tile(query, tiles.query);
  const int rows = p.tile[0] * p.tile[1];
  if (rows > kBlockRows)
    say(text, "it takes blocks of up to %d rows, not %d", kBlockRows, rows);
  else
    say_room(p, row_features(p, pass), text);
}

template <Pass pass>
void any_rows_obstacle(const Query& query, Text& text) {
  rows_obstacle<pass>(query, {{1, 1, 1}, {1, 1, 1}}, text);
}

template <Pass pass>
void rows_tilings(const Query& query, const TilingVisitor& visitor) {
  const int rank = query.problem.rank;
  for (int first = 1; first <= (rank > 2 ? kBlockRows : 1); ++first)
    for (int second = 1; first * second <= (rank > 1 ? kBlockRows : 1); ++second) {
      const Tiles tiles{{first, second, 1}, {1, 1, 1}};
      Text text{};
      rows_obstacle<pass>(query, tiles, text);
      const int features = max(query.problem.head_dim, query.problem.value_dim);
      if (is_empty(text)) visitor.visit(visitor.context, {tiles, first * second, first * second, kWidth, features, 0});
    }
}

template <Pass pass>
constexpr CpuVariant row_variant(Target target, void (*run)(const void*, const Parallel&),
                                 int64_t (*scratch)(const Problem&)) {
  return {{target, pass, "rows", Form::kLeadingAxes, bit(Operand::kRpb) | bit(Operand::kKeyMask), kHalfOrSingle,
           any_rows_obstacle<pass>, rows_obstacle<pass>, rows_tilings<pass>},
          run,
          scratch,
          1};
}

constexpr CpuVariant kRowVariants[] = {
    row_variant<Pass::kForward>(Target::kFusedForward, run_kernel<ForwardArgs, row_forward>, row_forward_scratch),
    row_variant<Pass::kBackward>(Target::kFusedBackward, run_kernel<BackwardArgs, row_backward>, row_backward_scratch),
    row_variant<Pass::kQk>(Target::kGemmQk, run_kernel<UnfusedArgs, row_gemm_qk>, row_gemm_scratch),
    row_variant<Pass::kAv>(Target::kGemmAv, run_kernel<UnfusedArgs, row_gemm_av>, row_gemm_scratch),
    row_variant<Pass::kInverse>(Target::kGemmInverse, run_kernel<UnfusedArgs, row_gemm_inverse>, row_gemm_scratch)};

}  // namespace JAX_NA_ISA
}  // namespace jax_na
