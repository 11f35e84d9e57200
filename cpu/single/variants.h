// SPDX-License-Identifier: Apache-2.0
// The row of the kernel for few queries.
#pragma once

#include "cpu/single/forward.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

constexpr int kFewQueries = 4;        // of a batch entry
constexpr int kMostSingle = 1 << 18;  // keys of a window: 4 MB of scores

// Sizes are 0 where they are not known.
inline void single_obstacle(const Query& query, Text& text) {
  const int64_t queries = query_tokens(query.problem);
  if (queries == 0)
    say(text, "it takes calls of 1 to %d queries", kFewQueries);
  else if (queries > kFewQueries)
    say(text, "it takes calls of 1 to %d queries, not %lld", kFewQueries, static_cast<long long>(queries));
  else if (slots(query.problem) > kMostSingle)
    say(text, "it takes windows of up to %d keys, not %d", kMostSingle, slots(query.problem));
}

inline void no_tiles_obstacle(const Query& query, const Tiles&, Text& text) { single_obstacle(query, text); }

inline void single_tilings(const Query& query, const TilingVisitor& visitor) {
  Text text{};
  single_obstacle(query, text);
  const int features = max(query.problem.head_dim, query.problem.value_dim);
  if (is_empty(text)) visitor.visit(visitor.context, {{{1, 1, 1}, {1, 1, 1}}, 1, 1, 1, features, 0});
}

constexpr CpuVariant kSingleVariant = {
    {Target::kFusedForward, Pass::kForward, "single", Form::kNone, bit(Operand::kRpb) | bit(Operand::kKeyMask),
     kHalfOrSingle, single_obstacle, no_tiles_obstacle, single_tilings},
    run_kernel<ForwardArgs, single_forward>,
    single_scratch,
    1};

}  // namespace JAX_NA_ISA
}  // namespace jax_na
