// SPDX-License-Identifier: Apache-2.0
// Weighted sums of the row kernels: lanes are features, two neighbouring outputs share the inputs that they load.
//
// Elements of inputs and weights are floats, or pairs of neighbours in the sum. Every input and every weight begins a
// pair, so a sum may start anywhere and takes every other one; what completes the last pair has the weight zero.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/isa.h"
#include "common/window.h"
#include "cpu/rows/block.h"
#include "cpu/rows/ring.h"
#include "cpu/simd/convert.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/micro.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// Rows of inputs (keys or queries), each with the weights that go with it.
constexpr int kInputRows = 32;
template <class Packed>
struct InputRows {
  int rows;
  const Packed* input[kInputRows];  // [position][pitch]
  const Packed* weight[kInputRows];
};

template <class Packed>
inline void add_input(InputRows<Packed>& inputs, const Packed* input, const Packed* weight) {
  inputs.input[inputs.rows] = input;
  inputs.weight[inputs.rows] = weight;
  ++inputs.rows;
}

// Two neighbouring outputs (queries or keys) and the inputs that either of them sees, first <= i < first + count, the
// same in every row: output o adds weight[row][offset[o] + (i - first) * step] times input i. The weight of an input
// that only the other sees is zero.
struct OutputPair {
  int first, count;
  ptrdiff_t offset[2], step;
};

// Two queries of a row: their inputs are keys, in columns of the ring.
inline OutputPair query_pair(const LaneTile& tile, const KeyRing& ring, int lane, int other) {
  const int first = tile.start[lane] + lane_origin(tile, lane);
  const int shift = tile.shifted ? other - lane : 0;
  const ptrdiff_t column = tile.margin + tile.start[lane];
  OutputPair pair;
  pair.first = first - ring.columns.start;
  pair.count = tile.stop[other] + shift - tile.start[lane];
  pair.offset[0] = column * kWidth + lane;
  pair.offset[1] = (column - shift) * kWidth + other;
  pair.step = kWidth;
  return pair;
}

// Two keys of a key row, seen by the lanes of a tile. The weights of a key run along the lanes: from one lane to the
// next, a column back when lanes are shifted.
inline OutputPair key_pair(const LaneTile& tile, Range lanes, int key, int other) {
  const ptrdiff_t column = tile.margin - lane_origin(tile, lanes.start);
  OutputPair pair;
  pair.first = lanes.start;
  pair.count = lanes.stop - lanes.start;
  pair.offset[0] = (column + key) * kWidth + lanes.start;
  pair.offset[1] = (column + other) * kWidth + lanes.start;
  pair.step = tile.shifted ? 1 - kWidth : 1;
  return pair;
}

// sum[o] += sum over rows and inputs i of weight_o[i] input_i[feature ...]
template <int kVectors, class Packed>
[[gnu::always_inline]] inline void add_pair(const InputRows<Packed>& inputs, int feature, ptrdiff_t pitch,
                                            const OutputPair& pair, Vec (&sum)[2][kVectors]) {
  const ptrdiff_t next = kTerms<Packed> * pitch, step = kTerms<Packed> * pair.step;
  for (int row = 0; row < inputs.rows; ++row) {
    const Packed* input = inputs.input[row] + feature + pair.first * pitch;
    const Packed *weight = inputs.weight[row] + pair.offset[0], *other = inputs.weight[row] + pair.offset[1];
#pragma GCC unroll 2
    for (int i = 0; i < pair.count; i += kTerms<Packed>, input += next, weight += step, other += step) {
      const Vec weights = splat(*weight), others = splat(*other);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Vec features = in_register(load(input + v * kWidth));
        sum[0][v] = add_product<Packed>(sum[0][v], weights, features);
        sum[1][v] = add_product<Packed>(sum[1][v], others, features);
      }
    }
  }
}

// Adds to rows of `dim` features in memory; `fresh` outputs start from zero. The second output may be the first again,
// when it has no neighbour: so it is stored first. Rows of inputs are padded to whole registers.
template <class Packed>
inline void add_pair(const InputRows<Packed>& inputs, int dim, const OutputPair& pair, float* out, float* other,
                     bool fresh) {
  for_each_block<4>(padded(dim) / kWidth, [&](auto registers, int first) {
    constexpr int kVectors = decltype(registers)::value;
    constexpr int kLast = (kVectors - 1) * kWidth;
    float *to = out + first * kWidth, *to_other = other + first * kWidth;
    const int width = dim - (first + kVectors - 1) * kWidth;  // of the last register
    Vec sum[2][kVectors] = {};
    if (!fresh) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors - 1; ++v) {
        sum[0][v] = load(to + v * kWidth);
        sum[1][v] = load(to_other + v * kWidth);
      }
      sum[0][kVectors - 1] = load_wide(to + kLast, width);
      sum[1][kVectors - 1] = load_wide(to_other + kLast, width);
    }
    add_pair(inputs, first * kWidth, padded(dim), pair, sum);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors - 1; ++v) {
      store(to_other + v * kWidth, sum[1][v]);
      store(to + v * kWidth, sum[0][v]);
    }
    store_narrow(to_other + kLast, sum[1][kVectors - 1], width);
    store_narrow(to + kLast, sum[0][kVectors - 1], width);
  });
}

constexpr int kProductFloats = 5 << 10;  // inputs that one pass over the pairs of a block reads: 20 KB, to stay in L1

// A product of the weights of a block with natural key rows of its ring: out[row][lane][:] of `dim` features.
template <class Packed>
struct QueryProduct {
  const KeyRing& ring;
  const Packed* weights;  // as scores: [query row][key row][column][kWidth]
  Packed* key_rows;
  float* out;
  int dim;
};

// The key rows (z, y) with y of `rows` that a query row sees; `weights` are its own.
template <class Packed>
inline InputRows<Packed> seen_rows(const QueryProduct<Packed>& product, const LaneTile& tile, const QueryRow& row,
                                   int z, Range rows, const Packed* weights) {
  InputRows<Packed> inputs;
  inputs.rows = 0;
  for (int y = max(rows.start, row.keys[1].start); y < min(rows.stop, row.keys[1].stop); ++y) {
    const int index = key_row_index(row, z, y);
    if (index < 0) break;
    add_input<Packed>(inputs, natural_row(product.ring, product.key_rows, product.dim, z, y),
                      weights + ptrdiff_t{index} * tile.pitch);
  }
  return inputs;
}

// out[row][lane][:] = sum over the window of weight * key row. A few key rows at a time: they are read by all query
// rows of the block before the next ones are.
template <class Packed>
inline void row_products(const BlockLanes& lanes, const QueryProduct<Packed>& product) {
  const RowBlock& block = lanes.block;
  const LaneTile& tile = lanes.tile;
  const int dim = padded(product.dim);
  // Keys of one row that the lanes see together, and how many such rows stay in L1.
  const int span = tile.columns + (tile.shifted ? kWidth - 1 : 0);
  const int step = min(max(1, kProductFloats / (span * dim)), kInputRows);
  bool fresh[kBlockRows] = {true, true, true, true};
  for (int z = block.keys[0].start; z < block.keys[0].stop; ++z)
    for (int first = block.keys[1].start; first < block.keys[1].stop; first += step) {
      const Packed* weights = product.weights;
      for (int r = 0; r < block.count; ++r) {
        const InputRows<Packed> inputs = seen_rows(product, tile, block.row[r], z, Range{first, first + step}, weights);
        weights += score_floats(block.row[r], tile);
        if (inputs.rows == 0) continue;
        float* out = block_row(product.out, r, product.dim);
        // Neighbouring queries see nearly the same keys: each is loaded once for both.
        for (int lane = 0; lane < tile.count; lane += 2) {
          const int other = min(lane + 1, tile.count - 1);
          const OutputPair pair = query_pair(tile, product.ring, lane, other);
          add_pair(inputs, product.dim, pair, out + lane * dim, out + other * dim, fresh[r]);
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
  for (int lane = 0; lane < kWidth; ++lane) exists[lane] = lane + 1 < tile.count ? -1 : 0;
  for (int row = 0; row < rows; ++row, scores += tile.pitch)
    for (int i = tile.pitch - kWidth; i >= 0; i -= kWidth) {  // the columns behind are still floats
      const Vec next = i >= behind ? select(load(exists), load(scores + i - behind + 1), Vec{}) : Vec{};
      store(scores + i, interleave(narrow(load(scores + i) * splat(factor), next * splat(factor))));
    }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
