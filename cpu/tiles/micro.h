// SPDX-License-Identifier: Apache-2.0
// The three matrix products of every tiled kernel, on tiles of kLanes tokens. A tile is stored transposed,
// [dim][kLanes], so that lanes never have to be summed across; the other operand is streamed: its rows are read one
// element at a time, and each element is multiplied with all lanes.
// Elements are floats, or pairs of bfloat16 that are neighbours in the sum; sums are float32.
//
//   dot          scores[j][lane]  = sum_d    tile[d][lane] row_j[d]            q k^T, dout v^T
//   accumulate   sums[d][lane]   += sum_j    row_j[d] weights[j][lane]         p v, ds k
//   outer        row_j[d]        += sum_lane weights[j][lane] tokens[lane][d]  p^T dout, ds^T q
//
// All are blocked in registers: a block keeps as many sums as there are registers, and the loop over what is summed is
// the outermost one, so that every operand loaded is used once per sum of the block.
#pragma once

#include <stddef.h>
#include <string.h>

#include "common/dispatch.h"
#include "common/isa.h"
#include "common/window.h"
#include "cpu/host/kernels.h"
#include "cpu/simd/vec.h"

namespace jax_na {

constexpr int kChunk = 128;  // keys per step: scores of a chunk are 8 KB, half of the smallest L1 in backward

// The rows of the streamed operand that one step reads, each of `dim` elements. Neighbours in the box of visited tokens
// are `stride` apart in memory, so the rows are kept as runs: together at most kChunk rows.
template <class Packed>
struct Streamed {
  int runs, dim;
  ptrdiff_t stride;
  Packed* base[kChunk];
  int first[kChunk], count[kChunk];  // the weights of a run are rows first .. first + count - 1 of the chunk's
};

inline namespace JAX_NA_ISA {

// Adds a run; one that begins where the last one ends makes that longer.
template <class Packed>
inline void add_run(Streamed<Packed>& rows, Packed* base, int first, int count) {
  const int last = rows.runs - 1;
  if (last >= 0 && rows.base[last] + rows.count[last] * rows.stride == base &&
      rows.first[last] + rows.count[last] == first) {
    rows.count[last] += count;
    return;
  }
  rows.base[rows.runs] = base;
  rows.first[rows.runs] = first;
  rows.count[rows.runs] = count;
  ++rows.runs;
}

// Accumulators that fit in the registers beside the operands; 16 hide the latency of two fused multiply-adds a cycle.
constexpr int kBlock = min(16, (kRegisters - kVecs - 1) / kVecs);
constexpr int kOuterRows = min(14, (kRegisters - 3) / 2);

// Calls body(Constant<n>{}, first) for nearly equal blocks of at most kMost that cover [0, count).
// Nearly equal, because a last block of one or two would wait for its sums: too few to hide the latency.
template <int kMost, class Body>
inline void for_each_block(int count, const Body& body) {
  for (int first = 0, blocks = ceil_div(count, kMost); blocks > 0; --blocks) {
    const int size = ceil_div(count - first, blocks);
    const auto call = [&](auto constant) { body(constant, first); };
    if constexpr (kMost <= 2)
      match<1, 2>(size, call);
    else if constexpr (kMost <= 6)
      match<6, 5, 4, 3, 2, 1>(size, call);
    else
      match<16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1>(size, call);
    first += size;
  }
}

// kCount rows from `row` on: scores[j][lane] = sum_d tile[d][lane] row_j[d].
template <int kCount, class Packed>
inline void dot_block(const Packed* tile, const Streamed<const Packed>& rows, const Packed* row, float factor,
                      float* scores) {
  const ptrdiff_t stride = rows.stride;
  Vec sum[kCount][kVecs] = {};
  for (int feature = 0; feature < rows.dim; ++feature) {
    Vec lanes[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) lanes[v] = load(tile + feature * kLanes + v * kWidth);
#pragma GCC unroll 16
    for (int j = 0; j < kCount; ++j) {
      const Vec element = splat(row[j * stride + feature]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sum[j][v] = add_product<Packed>(sum[j][v], lanes[v], element);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kCount; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v)
      store(scores + j * kLanes + v * kWidth, kTerms<Packed> == 1 ? sum[j][v] : sum[j][v] * splat(factor));
}

// factor: of products of pairs; floats have been scaled before.
template <class Packed>
inline void dot(const Packed* tile, const Streamed<const Packed>& rows, float factor, float* scores) {
  for (int run = 0; run < rows.runs; ++run)
    for_each_block<kBlock>(rows.count[run], [&](auto count, int first) {
      dot_block<decltype(count)::value>(tile, rows, rows.base[run] + first * rows.stride, factor,
                                        scores + (rows.first[run] + first) * kLanes);
    });
}

// kCount features from `first` on: sums[d][lane] += sum_j row_j[first + d] weights[j][lane].
template <int kCount, class Packed>
inline void accumulate_block(const Streamed<const Packed>& rows, int first, const Packed* weights, float* sums) {
  Vec sum[kCount][kVecs];
#pragma GCC unroll 16
  for (int d = 0; d < kCount; ++d)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sum[d][v] = load(sums + d * kLanes + v * kWidth);
  for (int run = 0; run < rows.runs; ++run) {
    const Packed* row = rows.base[run] + first;
    for (int j = 0; j < rows.count[run]; ++j, row += rows.stride, weights += kLanes) {
      Vec weight[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) weight[v] = load(weights + v * kWidth);
#pragma GCC unroll 16
      for (int d = 0; d < kCount; ++d) {
        const Vec element = splat(row[d]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) sum[d][v] = add_product<Packed>(sum[d][v], weight[v], element);
      }
    }
  }
#pragma GCC unroll 16
  for (int d = 0; d < kCount; ++d)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store(sums + d * kLanes + v * kWidth, sum[d][v]);
}

// weights: [keys][kLanes], or [pairs of keys][kLanes].
template <class Packed>
inline void accumulate(const Packed* weights, const Streamed<const Packed>& rows, float* sums) {
  for_each_block<kBlock>(rows.dim, [&](auto count, int first) {
    accumulate_block<decltype(count)::value>(rows, first, weights, sums + first * kLanes);
  });
}

// `width` of the kWidth elements at an address exist; the rest reads as zero and is not written.
inline Vec load_partial(const float* from, int width) {
  alignas(64) float buffer[kWidth] = {};
  memcpy(buffer, from, width * sizeof(float));
  return load(buffer);
}
inline void store_partial(float* to, Vec value, int width) {
  alignas(64) float buffer[kWidth];
  store(buffer, value);
  memcpy(to, buffer, width * sizeof(float));
}

// kCount rows, kVectors registers wide; the last may be partial, of `width` floats:
// row_j[d] += sum_lane weights[j][lane] tokens[lane][d].
template <int kCount, int kVectors, bool kPartial, class Packed>
inline void outer_block(const Packed* weights, const Packed* tokens, int pitch, float* row, ptrdiff_t stride,
                        int width) {
  constexpr int kSteps = kLanes / kTerms<Packed>;
  Vec sum[kCount][kVectors];
#pragma GCC unroll 16
  for (int j = 0; j < kCount; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      sum[j][v] = kPartial ? load_partial(row + j * stride, width) : load(row + j * stride + v * kWidth);
  for (int lane = 0; lane < kSteps; ++lane) {
    Vec token[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) token[v] = load(tokens + lane * pitch + v * kWidth);
#pragma GCC unroll 16
    for (int j = 0; j < kCount; ++j) {
      const Vec weight = splat(weights[j * kSteps + lane]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[j][v] = add_product<Packed>(sum[j][v], weight, token[v]);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kCount; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      if (kPartial)
        store_partial(row + j * stride, sum[j][v], width);
      else
        store(row + j * stride + v * kWidth, sum[j][v]);
    }
}

// weights: [keys][kLanes], or [keys][pairs of lanes]; tokens: [kLanes][pitch], or [pairs of lanes][pitch], padded with
// zeros to whole registers.
template <class Packed>
inline void outer(const Packed* weights, const Packed* tokens, int pitch, const Streamed<float>& rows) {
  for (int run = 0; run < rows.runs; ++run)
    for_each_block<kOuterRows>(rows.count[run], [&](auto count, int first) {
      constexpr int kCount = decltype(count)::value;
      float* row = rows.base[run] + first * rows.stride;
      const Packed* of_block = weights + (rows.first[run] + first) * (kLanes / kTerms<Packed>);
      int d = 0;
      for (; d + 2 * kWidth <= rows.dim; d += 2 * kWidth)
        outer_block<kCount, 2, false>(of_block, tokens + d, pitch, row + d, rows.stride, 0);
      for (; d + kWidth <= rows.dim; d += kWidth)
        outer_block<kCount, 1, false>(of_block, tokens + d, pitch, row + d, rows.stride, 0);
      if (d < rows.dim) outer_block<kCount, 1, true>(of_block, tokens + d, pitch, row + d, rows.stride, rows.dim - d);
    });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
