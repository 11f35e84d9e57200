// SPDX-License-Identifier: Apache-2.0
// The three matrix products of every tiled kernel, on tiles of kLanes tokens. A tile is stored transposed,
// [dim][kLanes], so that lanes never have to be summed across; the other operand is read one element at a time.
// Elements are floats, or pairs of bfloat16 that are neighbours in the sum; sums are float32.
//
//   dot          s[j][lane]  = sum_d  tile[d][lane] row_j[d]          q k^T, dout v^T
//   accumulate   t[d][lane] += sum_j  row_j[d] s[j][lane]             p v, ds k
//   outer        row_j[d]   += sum_lane s[j][lane] tokens[lane][d]    p^T dout, ds^T q
#pragma once

#include <stddef.h>

#include "common/dispatch.h"
#include "cpu/simd/vec.h"

namespace jax_na {

constexpr int kChunk = 128;  // keys per step: scores of a chunk are 8 KB, half of the smallest L1 in backward

// Rows of the streamed operand, of `dim` elements: runs of equally spaced rows, together at most kChunk.
template <class E>
struct Rows {
  int runs, dim;
  ptrdiff_t stride;
  E* base[kChunk];
  int first[kChunk], count[kChunk];  // the weights of a run are rows first .. first + count - 1 of the chunk's
};

inline namespace JAX_NA_ISA {

// Adds a run; one that begins where the last one ends makes that longer.
template <class E>
inline void add_run(Rows<E>& rows, E* base, int first, int count) {
  const int last = rows.runs - 1;
  if (last >= 0 && rows.base[last] + rows.count[last] * rows.stride == base &&
      rows.first[last] + rows.count[last] == first) {
    rows.count[last] += count;
    return;
  }
  rows.base[rows.runs] = base;
  rows.first[rows.runs] = first;
  rows.count[rows.runs++] = count;
}

// Accumulators that fit in the registers beside the operands; 16 hide the latency of two fused multiply-adds a cycle.
constexpr int kBlock = min(16, (kRegisters - kVecs - 1) / kVecs);
constexpr int kOuterRows = min(14, (kRegisters - 3) / 2);

// Calls body(Constant<n>{}, first) for nearly equal blocks of at most Max that cover [0, count).
template <int Max, class Body>
inline void for_each_block(int count, const Body& body) {
  for (int first = 0, blocks = ceil_div(count, Max); blocks > 0; --blocks) {
    const int n = ceil_div(count - first, blocks);
    if constexpr (Max <= 2)
      match<1, 2>(n, [&](auto c) { body(c, first); });
    else if constexpr (Max <= 6)
      match<6, 5, 4, 3, 2, 1>(n, [&](auto c) { body(c, first); });
    else
      match<16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1>(n, [&](auto c) { body(c, first); });
    first += n;
  }
}

template <int N, class E>
inline void dot_block(const E* tile, const Rows<const E>& rows, const E* row, float factor, float* s) {
  const ptrdiff_t stride = rows.stride;
  Vec sum[N][kVecs] = {};
  for (int d = 0; d < rows.dim; ++d) {
    Vec t[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) t[v] = load(tile + d * kLanes + v * kWidth);
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
      const Vec r = splat(row[j * stride + d]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sum[j][v] = add_product<E>(sum[j][v], t[v], r);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v)
      store(s + j * kLanes + v * kWidth, kTerms<E> == 1 ? sum[j][v] : sum[j][v] * splat(factor));
}

// factor: of products of pairs; floats have been scaled before.
template <class E>
inline void dot(const E* tile, const Rows<const E>& rows, float factor, float* s) {
  for (int run = 0; run < rows.runs; ++run)
    for_each_block<kBlock>(rows.count[run], [&](auto n, int first) {
      dot_block<decltype(n)::value>(tile, rows, rows.base[run] + first * rows.stride, factor,
                                    s + (rows.first[run] + first) * kLanes);
    });
}

template <int N, class E>
inline void accumulate_block(const Rows<const E>& rows, int first, const E* s, float* t) {
  Vec sum[N][kVecs];
#pragma GCC unroll 16
  for (int d = 0; d < N; ++d)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sum[d][v] = load(t + d * kLanes + v * kWidth);
  for (int run = 0; run < rows.runs; ++run) {
    const E* row = rows.base[run] + first;
    for (int j = 0; j < rows.count[run]; ++j, row += rows.stride, s += kLanes) {
      Vec weight[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) weight[v] = load(s + v * kWidth);
#pragma GCC unroll 16
      for (int d = 0; d < N; ++d) {
        const Vec r = splat(row[d]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) sum[d][v] = add_product<E>(sum[d][v], weight[v], r);
      }
    }
  }
#pragma GCC unroll 16
  for (int d = 0; d < N; ++d)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store(t + d * kLanes + v * kWidth, sum[d][v]);
}

// s: [keys][kLanes], or [pairs of keys][kLanes].
template <class E>
inline void accumulate(const E* s, const Rows<const E>& rows, float* t) {
  for_each_block<kBlock>(
      rows.dim, [&](auto n, int first) { accumulate_block<decltype(n)::value>(rows, first, s, t + first * kLanes); });
}

// `width` of the kWidth elements at p exist; the rest reads as zero and is not written.
inline Vec load_partial(const float* p, int width) {
  alignas(64) float buffer[kWidth] = {};
  memcpy(buffer, p, width * sizeof(float));
  return load(buffer);
}
inline void store_partial(float* p, Vec value, int width) {
  alignas(64) float buffer[kWidth];
  store(buffer, value);
  memcpy(p, buffer, width * sizeof(float));
}

// V registers wide; the last may be partial.
template <int N, int V, bool kPartial, class E>
inline void outer_block(const E* s, const E* tokens, int pitch, float* row, ptrdiff_t stride, int width) {
  constexpr int kSteps = kLanes / kTerms<E>;
  Vec sum[N][V];
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v)
      sum[j][v] = kPartial ? load_partial(row + j * stride, width) : load(row + j * stride + v * kWidth);
  for (int lane = 0; lane < kSteps; ++lane) {
    Vec token[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) token[v] = load(tokens + lane * pitch + v * kWidth);
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
      const Vec weight = splat(s[j * kSteps + lane]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[j][v] = add_product<E>(sum[j][v], weight, token[v]);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      if (kPartial)
        store_partial(row + j * stride, sum[j][v], width);
      else
        store(row + j * stride + v * kWidth, sum[j][v]);
    }
}

// s: [keys][kLanes], or [keys][pairs of lanes]; tokens: [kLanes][pitch], or [pairs of lanes][pitch], padded with zeros
// to whole registers.
template <class E>
inline void outer(const E* s, const E* tokens, int pitch, const Rows<float>& rows) {
  for (int run = 0; run < rows.runs; ++run)
    for_each_block<kOuterRows>(rows.count[run], [&](auto n, int first) {
      constexpr int N = decltype(n)::value;
      float* row = rows.base[run] + first * rows.stride;
      const E* weights = s + (rows.first[run] + first) * (kLanes / kTerms<E>);
      int d = 0;
      for (; d + 2 * kWidth <= rows.dim; d += 2 * kWidth)
        outer_block<N, 2, false>(weights, tokens + d, pitch, row + d, rows.stride, 0);
      for (; d + kWidth <= rows.dim; d += kWidth)
        outer_block<N, 1, false>(weights, tokens + d, pitch, row + d, rows.stride, 0);
      if (d < rows.dim) outer_block<N, 1, true>(weights, tokens + d, pitch, row + d, rows.stride, rows.dim - d);
    });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
