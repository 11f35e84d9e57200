// SPDX-License-Identifier: Apache-2.0
// Weighted sums of the row kernels: lanes are features, two neighbouring outputs share the inputs that they load.
//
// Elements of inputs and weights are floats, or pairs of neighbours in the sum. Every input and every weight begins a
// pair, so a sum may start anywhere and takes every other one; what completes the last pair has the weight zero.
#pragma once

#include <initializer_list>

#include "cpu/rows/ring.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// Rows of inputs (keys or queries), each with the weights that go with it.
constexpr int kInputRows = 32;
template <class E>
struct Inputs {
  int rows;
  const E* input[kInputRows];  // [position][pitch]
  const E* weight[kInputRows];
};

// Two neighbouring outputs (queries or keys) and the inputs that either of them sees, first <= i < first + count, the
// same in every row: output o adds weight[row][offset[o] + (i - first) * step] times input i. The weight of an input
// that only the other sees is zero.
struct Pair {
  int first, count;
  ptrdiff_t offset[2], step;
};

// Two queries of a row: their inputs are keys, in columns of the ring.
inline Pair query_pair(const LaneTile& tile, const Ring& ring, int lane, int other) {
  const int first = tile.start[lane] + tile.low + (tile.shifted ? tile.first + lane : 0);
  const int shift = tile.shifted ? other - lane : 0;
  const ptrdiff_t at = tile.margin + tile.start[lane];
  return {first - ring.columns.start,
          tile.stop[other] + shift - tile.start[lane],
          {at * kWidth + lane, (at - shift) * kWidth + other},
          kWidth};
}

template <int V, class E>
[[gnu::always_inline]] inline void add_pair(const Inputs<E>& inputs, int feature, ptrdiff_t pitch, const Pair& pair,
                                            Vec (&sum)[2][V]) {
  const ptrdiff_t next = kTerms<E> * pitch, step = kTerms<E> * pair.step;
  for (int row = 0; row < inputs.rows; ++row) {
    const E* input = inputs.input[row] + feature + pair.first * pitch;
    const E *w0 = inputs.weight[row] + pair.offset[0], *w1 = inputs.weight[row] + pair.offset[1];
#pragma GCC unroll 2
    for (int i = 0; i < pair.count; i += kTerms<E>, input += next, w0 += step, w1 += step) {
      const Vec a = splat(*w0), b = splat(*w1);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const Vec x = in_register(load(input + v * kWidth));
        sum[0][v] = add_product<E>(sum[0][v], a, x);
        sum[1][v] = add_product<E>(sum[1][v], b, x);
      }
    }
  }
}

// The same, added to rows of `dim` features in memory; `fresh` outputs start from zero. The second output may be
// the first again, when it has no neighbour. Rows of inputs are padded to whole registers.
template <class E>
inline void add_pair(const Inputs<E>& inputs, int dim, const Pair& pair, float* out, float* other, bool fresh) {
  for_each_block<4>(padded(dim) / kWidth, [&](auto registers, int first) {
    constexpr int V = decltype(registers)::value;
    float *to = out + first * kWidth, *to_other = other + first * kWidth;
    const int width = dim - (first + V - 1) * kWidth;  // of the last register
    Vec sum[2][V] = {};
    if (!fresh) {
#pragma GCC unroll 4
      for (int v = 0; v < V - 1; ++v) sum[0][v] = load(to + v * kWidth), sum[1][v] = load(to_other + v * kWidth);
      sum[0][V - 1] = load_wide(to + (V - 1) * kWidth, width);
      sum[1][V - 1] = load_wide(to_other + (V - 1) * kWidth, width);
    }
    add_pair(inputs, first * kWidth, padded(dim), pair, sum);
#pragma GCC unroll 4
    for (int v = 0; v < V - 1; ++v) {
      store(to_other + v * kWidth, sum[1][v]);
      store(to + v * kWidth, sum[0][v]);
    }
    store_narrow(to_other + (V - 1) * kWidth, sum[1][V - 1], width);
    store_narrow(to + (V - 1) * kWidth, sum[0][V - 1], width);
  });
}

constexpr int kProductFloats = 5 << 10;  // inputs that one pass over the pairs of a block reads: 20 KB, to stay in L1

// out[row][lane][:] = sum over the window of weight * key row, for natural key rows of a ring.
template <class E>
inline void row_products(int features, const Block& block, const LaneTile& tile, const Ring& ring, const E* weights,
                         E* key_rows_base, float* out) {
  const int dim = padded(features);
  const int span = tile.columns + (tile.shifted ? kWidth - 1 : 0);
  const int step = min(max(1, kProductFloats / (span * dim)), kInputRows);
  bool fresh[kBlockRows] = {true, true, true, true};
  for (int z = block.keys[0].start; z < block.keys[0].stop; ++z)
    for (int first = block.keys[1].start; first < block.keys[1].stop; first += step) {
      const E* at = weights;
      for (int r = 0; r < block.count; at += ptrdiff_t{key_rows(block.row[r++])} * tile.pitch) {
        const QueryRow& row = block.row[r];
        Inputs<E> inputs;
        inputs.rows = 0;
        for (int y = max(first, row.keys[1].start); y < min(first + step, row.keys[1].stop); ++y) {
          const int index = key_row_index(row, z, y);
          if (index < 0) break;
          inputs.input[inputs.rows] = natural_row(ring, key_rows_base, features, z, y);
          inputs.weight[inputs.rows++] = at + ptrdiff_t{index} * tile.pitch;
        }
        if (inputs.rows == 0) continue;
        float* to = out + int64_t{r} * kWidth * dim;
        for (int lane = 0; lane < tile.count; lane += 2) {
          const int other = min(lane + 1, tile.count - 1);
          add_pair(inputs, features, query_pair(tile, ring, lane, other), to + lane * dim, to + other * dim, fresh[r]);
        }
        fresh[r] = false;
      }
    }
}

// Weights of queries as pairs: a column and the next one. from and to may be the same.
inline void pair_columns(const LaneTile& tile, int rows, float factor, const float* from, BFloat16Pair* to) {
  for (int row = 0; row < rows; ++row, from += tile.pitch, to += tile.pitch) {
    Vec weight = load(from) * splat(factor);
    for (int i = 0; i < tile.pitch; i += kWidth) {
      const Vec next = i + kWidth < tile.pitch ? load(from + i + kWidth) * splat(factor) : Vec{};
      store(to + i, interleave(narrow(weight, next)));
      weight = next;
    }
  }
}

// Weights of keys as pairs, in place: a lane and the next one, which is a column behind when lanes are shifted.
inline void pair_lanes(const LaneTile& tile, int rows, float factor, float* scores) {
  const int behind = tile.shifted ? kWidth : 0;
  alignas(64) int32_t exists[kWidth];  // the next lane
  for (int l = 0; l < kWidth; ++l) exists[l] = l + 1 < tile.count ? -1 : 0;
  for (int row = 0; row < rows; ++row, scores += tile.pitch)
    for (int i = tile.pitch - kWidth; i >= 0; i -= kWidth) {  // the columns behind are still floats
      const Vec next = i >= behind ? select(load(exists), load(scores + i - behind + 1), Vec{}) : Vec{};
      store(scores + i, interleave(narrow(load(scores + i) * splat(factor), next * splat(factor))));
    }
}

// Two keys of a key row, seen by the lanes of a tile.
inline Pair key_pair(const LaneTile& tile, int first_lane, int stop_lane, int key, int other) {
  const ptrdiff_t column = tile.margin - tile.low - (tile.shifted ? tile.first + first_lane : 0);
  return {first_lane,
          stop_lane - first_lane,
          {(column + key) * kWidth + first_lane, (column + other) * kWidth + first_lane},
          tile.shifted ? 1 - kWidth : 1};
}

// A product of the transposed weights of a block: scores, the block's queries as rows [row][lane][dim], where the sums
// of the keys go.
template <class E>
struct KeySum {
  const E *scores, *rows;
  View<float> sums;
};

// Adds products to memory; nobody else adds to these keys meanwhile.
template <class E>
inline void add_key_sums(const Problem& p, const RowUnit& unit, const Block& block, const LaneTile& tile,
                         std::initializer_list<KeySum<E>> products) {
  const auto key = [&](int lane, const int32_t* column) {
    return column[lane] + tile.low + (tile.shifted ? tile.first + lane : 0);
  };
  const int first_key = key(0, tile.start), last_key = key(tile.count - 1, tile.stop) - 1;
  for_each_key_row(block, tile, [&](int z, int y, const SeenBy& seen) {
    const int position[kAxes] = {z, y, first_key};
    const int64_t token = key_token(p, unit.tile, position);
    for (const KeySum<E>& product : products) {
      const int dim = product.sums.dim;
      const int64_t step = p.axis[2].dilation * product.sums.stride;
      float* to = product.sums.base + token * product.sums.stride;
      Inputs<E> inputs;
      inputs.rows = seen.count;
      for (int i = 0; i < seen.count; ++i) {
        inputs.input[i] = product.rows + int64_t{seen.row[i]} * kWidth * padded(dim);
        inputs.weight[i] = product.scores + seen.at[i];
      }
      int first = 0, stop = 0;  // lanes that see either key
      for (int k = first_key; k <= last_key; k += 2) {
        const int other = min(k + 1, last_key);
        while (first < tile.count && key(first, tile.stop) <= k) ++first;
        while (stop < tile.count && key(stop, tile.start) <= other) ++stop;
        if (first < stop)
          add_pair(inputs, dim, key_pair(tile, first, stop, k, other), to + (k - first_key) * step,
                   to + (other - first_key) * step, false);
      }
    }
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
