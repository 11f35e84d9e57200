// SPDX-License-Identifier: Apache-2.0
// Weighted sums of the row kernels: lanes are features, two neighbouring outputs share the inputs that they load.
#pragma once

#include <initializer_list>

#include "row_ring.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// Rows of inputs (keys or queries), each with the weights that go with it.
constexpr int kInputRows = 32;
struct Inputs {
  int rows;
  const float* input[kInputRows];  // [position][pitch]
  const float* weight[kInputRows];
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

template <int V>
[[gnu::always_inline]] inline void add_pair(const Inputs& inputs, int feature, ptrdiff_t pitch, const Pair& pair,
                                            Vec (&sum)[2][V]) {
  for (int row = 0; row < inputs.rows; ++row) {
    const float* input = inputs.input[row] + feature + pair.first * pitch;
    const float *w0 = inputs.weight[row] + pair.offset[0], *w1 = inputs.weight[row] + pair.offset[1];
#pragma GCC unroll 2
    for (int i = 0; i < pair.count; ++i, input += pitch, w0 += pair.step, w1 += pair.step) {
      const Vec a = splat(*w0), b = splat(*w1);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const Vec x = in_register(load(input + v * kWidth));
        sum[0][v] += a * x;
        sum[1][v] += b * x;
      }
    }
  }
}

// The same, added to rows of `dim` features in memory; `fresh` outputs start from zero. The second output may be
// the first again, when it has no neighbour. Rows of inputs are padded to whole registers.
inline void add_pair(const Inputs& inputs, int dim, const Pair& pair, float* out, float* other, bool fresh) {
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
inline void row_products(int features, const Block& block, const LaneTile& tile, const Ring& ring, const float* weights,
                         float* key_rows_base, float* out) {
  const int dim = padded(features);
  const int span = tile.columns + (tile.shifted ? kWidth - 1 : 0);
  const int step = min(max(1, kProductFloats / (span * dim)), kInputRows);
  bool fresh[kBlockRows] = {true, true, true, true};
  for (int z = block.keys[0].start; z < block.keys[0].stop; ++z)
    for (int first = block.keys[1].start; first < block.keys[1].stop; first += step) {
      const float* at = weights;
      for (int r = 0; r < block.count; at += ptrdiff_t{key_rows(block.row[r++])} * tile.pitch) {
        const QueryRow& row = block.row[r];
        Inputs inputs;
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
struct KeySum {
  const float *scores, *rows;
  View<float> sums;
};

// Adds products to memory; nobody else adds to these keys meanwhile.
inline void add_key_sums(const Problem& p, const RowUnit& unit, const Block& block, const LaneTile& tile,
                         std::initializer_list<KeySum> products) {
  const auto key = [&](int lane, const int32_t* column) {
    return column[lane] + tile.low + (tile.shifted ? tile.first + lane : 0);
  };
  const int first_key = key(0, tile.start), last_key = key(tile.count - 1, tile.stop) - 1;
  for_each_key_row(block, tile, [&](int z, int y, const SeenBy& seen) {
    const int position[kAxes] = {z, y, first_key};
    const int64_t token = key_token(p, unit.tile, position);
    for (const KeySum& product : products) {
      const int dim = product.sums.dim;
      const int64_t step = p.axis[2].dilation * product.sums.stride;
      float* to = product.sums.base + token * product.sums.stride;
      Inputs inputs;
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
