// SPDX-License-Identifier: Apache-2.0
// Packing tokens for the row kernels, transposed ([dim][tokens]) or natural ([tokens][dim]).
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "common/isa.h"
#include "common/window.h"
#include "cpu/simd/convert.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/view.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// Tokens of one head that follow one another along the last axis.
template <class T>
struct TokenRun {
  T* first;  // [count] tokens, `step` elements apart, of `dim` features
  int64_t step;
  int count, dim;
};

template <class T>
inline TokenRun<T> token_run(const HeadView<T>& view, int64_t token, int64_t dilation, int count) {
  return {view.base + token * view.stride, dilation * view.stride, count, view.dim};
}

// One element of a token, along its features.
template <class Packed, class T>
inline Packed element_at(const T* token, int index, int dim) {
  if constexpr (kTerms<Packed> == 2)
    return {token[2 * index], 2 * index + 1 < dim ? token[2 * index + 1] : T{}};
  else
    return to_accumulator(token[index]);
}

// to[d * pitch + j] = factor * token_j[d]; whole registers are written: past the end, the last token again. Pairs are
// of features, and are not scaled.
template <class T, class Packed>
inline void pack_transposed(TokenRun<const T> tokens, float factor, Packed* to, ptrdiff_t pitch) {
  const int elements = row_elements<Packed>(Along::kFeatures, tokens.dim);
  const T* token = tokens.first;
  for (int j = 0; j < tokens.count; j += kWidth, token += kWidth * tokens.step) {
    const T* from[kWidth];
    for (int i = 0; i < kWidth; ++i) from[i] = token + min(i, tokens.count - j - 1) * tokens.step;
    int d = 0;
    for (; d + kWidth <= tokens.dim / kTerms<Packed>; d += kWidth) {
      Vec row[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) row[i] = load_elements<Packed>(from[i], d, tokens.dim);
      transpose(row);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(to + (d + i) * pitch + j, scaled<Packed>(row[i], factor));
    }
    for (; d < elements; ++d)
      for (int i = 0; i < kWidth; ++i) {
        Packed& element = to[d * pitch + j + i];
        element = element_at<Packed>(from[i], d, tokens.dim);
        if constexpr (kTerms<Packed> == 1) element *= factor;
      }
  }
}

// to[j][d] = factor * token_j[d], rows padded with zeros to whole registers.
template <class T>
inline void pack_natural(TokenRun<const T> tokens, float factor, float* to) {
  const int dim = tokens.dim;
  const T* token = tokens.first;
  for (int j = 0; j < tokens.count; ++j, token += tokens.step, to += padded(dim)) {
    int d = 0;
    for (; d + kWidth <= dim; d += kWidth) store(to + d, load_wide(token + d) * splat(factor));
    if (d < dim) store(to + d, load_wide(token + d, dim - d) * splat(factor));
  }
}
// to[j][d] = the pair (token_j[d], token_{j+1}[d]): every token begins one, because windows begin anywhere. The last
// one is with zero.
inline void pack_natural(TokenRun<const BFloat16> tokens, float, BFloat16Pair* to) {
  const int dim = tokens.dim;
  const BFloat16* token = tokens.first;
  for (int j = 0; j < tokens.count; ++j, token += tokens.step, to += padded(dim))
    for (int d = 0; d < dim; d += kWidth) {
      const Vec next = j + 1 < tokens.count ? load_wide(token + tokens.step + d, dim - d) : Vec{};
      store(to + d, pair_exactly(load_wide(token + d, dim - d), next));
    }
}

// Whether all values of natural rows are finite; what fills their last registers may be anything.
inline bool all_finite(const float* rows, int count, int dim) {
  Vec finite = {};
  for (int j = 0; j < count; ++j, rows += padded(dim))
    for (int d = 0; d < dim; d += kWidth) finite += zero_if_finite(load_wide(rows + d, dim - d));
  return all_zero(finite);
}

// token_j[d] = factor(j) * rows[j][d], the other way round. Calls spoiled(j) for tokens with a value that is not
// finite.
template <class T, class Factor, class Spoiled>
inline void unpack_natural(const float* rows, const Factor& factor, TokenRun<T> tokens, const Spoiled& spoiled) {
  const int dim = tokens.dim;
  T* token = tokens.first;
  Vec finite = {};
  const float* row = rows;
  for (int j = 0; j < tokens.count; ++j, row += padded(dim), token += tokens.step) {
    const Vec scale = splat(factor(j));
    int d = 0;
    for (; d + kWidth <= dim; d += kWidth) {
      const Vec values = load(row + d) * scale;
      finite += zero_if_finite(values);
      store_narrow(token + d, values);
    }
    if (d == dim) continue;
    const Vec values = load_wide(row + d, dim - d) * scale;
    finite += zero_if_finite(values);
    store_narrow(token + d, values, dim - d);
  }
  if (all_zero(finite)) return;
  for (int j = 0; j < tokens.count; ++j)
    if (!all_finite(rows + j * padded(dim), 1, dim) || !isfinite(factor(j))) spoiled(j);
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
