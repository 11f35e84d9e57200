// SPDX-License-Identifier: Apache-2.0
// Operands as one head sees them, and the transposes between memory and tiles.
//
// The elements of tiles and panels are floats, or pairs of bfloat16: of two neighbouring features where a product sums
// over features (Along::kFeatures: scores), of two neighbouring tokens where it sums over those (Along::kTokens:
// weighted sums). Zeros fill the last pair.
#pragma once

#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cpu/host/kernels.h"
#include "cpu/simd/convert.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/tile.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// One operand [batch, tokens, heads, dim] seen from one batch entry and head.
template <class T>
struct HeadView {
  T* base;
  int64_t stride;  // between tokens
  int dim;
};

template <class T>
inline HeadView<T> make_view(T* data, int64_t batch, int64_t tokens, int heads, int head, int dim) {
  const int64_t stride = int64_t{heads} * dim;
  return {data + batch * tokens * stride + int64_t{head} * dim, stride, dim};
}

// The operand of a query head, or of a kv head, from the array of all.
template <class T>
inline HeadView<T> query_view(const Problem& problem, T* data, int64_t batch, int head, int dim) {
  return make_view(data, batch, query_tokens(problem), problem.heads, head, dim);
}
template <class T>
inline HeadView<T> key_view(const Problem& problem, T* data, int64_t batch, int kv_head, int dim) {
  return make_view(data, batch, key_tokens(problem), problem.kv_heads, kv_head, dim);
}

// Along what two neighbours make a pair.
enum class Along { kFeatures, kTokens };

// A row of packed tokens: its elements, and how many tokens they are of.
template <class Packed>
inline int row_elements(Along along, int dim) {
  return along == Along::kFeatures ? ceil_div(dim, kTerms<Packed>) : dim;
}
template <class Packed>
inline int row_tokens(Along along) {
  return along == Along::kTokens ? kTerms<Packed> : 1;
}

// tile[d][lane] = factor * token_lane[d]. A tile has rows for whole registers of elements, because it is packed in
// squares: kWidth elements of kWidth tokens are loaded as they lie and transposed in registers.
template <class T, class Packed>
inline void pack_tile(const HeadView<const T>& view, const Lanes& lanes, float factor, Packed* tile) {
  const int elements = row_elements<Packed>(Along::kFeatures, view.dim);
  for (int lane = 0; lane < kLanes; lane += kWidth) {
    const T* token[kWidth];
    for (int i = 0; i < kWidth; ++i) token[i] = view.base + lanes.token[lane + i] * view.stride;
    for (int first = 0; first < elements; first += kWidth) {
      Vec row[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) row[i] = load_elements<Packed>(token[i], first, view.dim);
      transpose(row);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(tile + (first + i) * kLanes + lane, scaled<Packed>(row[i], factor));
    }
  }
}

// token_lane[d] = factor[lane] * tile[d][lane], for the lanes that exist. Calls spoiled(lane) for those of them with a
// value that is not finite.
template <class T, class Spoiled>
inline void unpack_tile(const float* tile, const float* factor, const Lanes& lanes, const HeadView<T>& view,
                        const Spoiled& spoiled) {
  for (int lane = 0; lane < kLanes; lane += kWidth) {
    Vec finite = {};  // zeros where all values of a lane are
    for (int first = 0; first < view.dim; first += kWidth) {
      Vec row[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        row[i] = load(tile + (first + i) * kLanes + lane) * load(factor + lane);
        finite += zero_if_finite(row[i]);
      }
      transpose(row);
      for (int i = 0; i < kWidth; ++i)
        if (lanes.valid[lane + i])
          store_narrow(view.base + lanes.token[lane + i] * view.stride + first, row[i], view.dim - first);
    }
    if (all_zero(finite)) continue;
    for (int i = 0; i < kWidth; ++i)
      if (lanes.valid[lane + i] && !(finite[i] == 0.0f)) spoiled(lane + i);
  }
}

// tokens[lane][d] = factor * token_lane[d], or pairs of lanes; rows padded with zeros to whole registers.
template <class T, class Packed>
inline void pack_tokens(const HeadView<const T>& view, const Lanes& lanes, float factor, Packed* tokens) {
  const int pitch = padded(view.dim);
  const auto part = [&](int lane, int first) {
    return load_wide(view.base + lanes.token[lane] * view.stride + first, view.dim - first);
  };
  for (int lane = 0; lane < kLanes; lane += kTerms<Packed>, tokens += pitch)
    for (int first = 0; first < pitch; first += kWidth) {
      if constexpr (kTerms<Packed> == 2)
        store(tokens + first, pair_exactly(part(lane, first), part(lane + 1, first)));
      else
        store(tokens + first, part(lane, first) * splat(factor));
    }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
