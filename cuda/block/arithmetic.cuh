// SPDX-License-Identifier: Apache-2.0
// Warp-level matrix products, one policy per element type: how its values become operands of the tensor cores. Sums are
// fragments (fragment.cuh), in float32 for every type.
//
// All operands lie in shared memory as rows of 16-byte chunks; a step of a product takes two chunks, which is 16
// values of 2 bytes or 8 of 4 bytes, so loads of rows are the same instructions for every type.
#pragma once

#include <stdint.h>

#include "cuda/block/fragment.cuh"
#include "cuda/ptx/element.cuh"
#include "cuda/ptx/shared_tile.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Both 2-byte types. Type: F16 or BF16 below.
template <class Type>
struct HalfPrecision {
  using Element = typename Type::Element;
  static constexpr int kDepth = 16;  // terms of a sum per instruction
  struct Left {
    uint32_t bits[4];
  };
  struct Right {
    uint32_t bits[2];
  };

  static __device__ __forceinline__ Left left(const uint32_t (&raw)[4]) { return {raw[0], raw[1], raw[2], raw[3]}; }
  static __device__ __forceinline__ Right right(uint32_t first, uint32_t second) { return {first, second}; }

  // Sums as the left operand of the next product: step `k` of the sum over their columns.
  template <int kTiles>
  static __device__ __forceinline__ Left left_of_sums(const float (&sums)[kTiles][4], int k) {
    const float (&near)[4] = sums[2 * k];
    const float (&far)[4] = sums[2 * k + 1];
    return {Type::pack(near[0], near[1]), Type::pack(near[2], near[3]), Type::pack(far[0], far[1]),
            Type::pack(far[2], far[3])};
  }

  // Right operands that are columns of a tile: the features of chunks `chunk` and `chunk + 1` of two tiles of 8; the
  // sum is over the tokens (rows) of step `k`. `chunk` is even.
  template <int kRowBytes>
  static __device__ __forceinline__ void load_columns(Right (&operands)[2], SharedTile<kRowBytes> tile, int k,
                                                      int chunk, int lane) {
    uint32_t raw[4];
    const uint32_t base = tile.address(lane % 16, lane / 16);
    ldmatrix_x4_trans(raw, SharedTile<kRowBytes>::other_chunk(base, chunk) + k * kDepth * kRowBytes);
    operands[0] = right(raw[0], raw[1]);
    operands[1] = right(raw[2], raw[3]);
  }

  static __device__ __forceinline__ void multiply_add(float (&sum)[4], const Left& left, const Right& right) {
    Type::mma(sum, left.bits, right.bits[0], right.bits[1]);
  }
};

struct F16Type {
  using Element = Half;
  static __device__ __forceinline__ uint32_t pack(float low, float high) { return pack_f16(low, high); }
  static __device__ __forceinline__ void mma(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0,
                                             uint32_t right1) {
    mma_f16(sums, left, right0, right1);
  }
};
struct BF16Type {
  using Element = BFloat16;
  static __device__ __forceinline__ uint32_t pack(float low, float high) { return pack_bf16(low, high); }
  static __device__ __forceinline__ void mma(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0,
                                             uint32_t right1) {
    mma_bf16(sums, left, right0, right1);
  }
};
using F16 = HalfPrecision<F16Type>;
using BF16 = HalfPrecision<BF16Type>;

// float32 operands. TF32 instructions take 10 bits of mantissa.
//
// A sum does not depend on the order of its terms: in products with sums as the left operand, term t of a step is
// column 2 t, term t + 4 is column 2 t + 1. So no value moves between threads.
template <class Derived>
struct SinglePrecision {
  using Element = float;
  static constexpr int kDepth = 8;

  template <int kTiles>
  static __device__ __forceinline__ auto left_of_sums(const float (&sums)[kTiles][4], int k) {
    const float (&four)[4] = sums[k];
    const uint32_t raw[4] = {float_bits(four[0]), float_bits(four[2]), float_bits(four[1]), float_bits(four[3])};
    return Derived::left(raw);
  }

  template <class Right, int kRowBytes>
  static __device__ __forceinline__ void load_columns(Right (&operands)[2], SharedTile<kRowBytes> tile, int k,
                                                      int chunk, int lane) {
    const int row = k * kDepth + lane % 4 * 2, column = lane / 4;  // column of 8, which are two chunks
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int number = chunk + 2 * i + column / 4;
      operands[i] = Derived::right(tile.word(row, number, column % 4), tile.word(row + 1, number, column % 4));
    }
  }
};

// Fast: operands rounded to TF32.
struct TF32 : SinglePrecision<TF32> {
  struct Left {
    uint32_t bits[4];
  };
  struct Right {
    uint32_t bits[2];
  };
  static __device__ __forceinline__ Left left(const uint32_t (&raw)[4]) {
    return {rounded(raw[0]), rounded(raw[1]), rounded(raw[2]), rounded(raw[3])};
  }
  static __device__ __forceinline__ Right right(uint32_t first, uint32_t second) {
    return {rounded(first), rounded(second)};
  }
  static __device__ __forceinline__ void multiply_add(float (&sum)[4], const Left& left, const Right& right) {
    mma_tf32(sum, left.bits, right.bits[0], right.bits[1]);
  }

 private:
  static __device__ __forceinline__ uint32_t rounded(uint32_t raw) { return to_tf32(bits_float(raw)); }
};

// Exact to about 2^-21: every operand is the sum of two TF32 values, and of the four products only the one of the two
// small parts is left out.
struct ExactF32 : SinglePrecision<ExactF32> {
  struct Left {
    uint32_t high[4], low[4];
  };
  struct Right {
    uint32_t high[2], low[2];
  };
  static __device__ __forceinline__ Left left(const uint32_t (&raw)[4]) {
    Left parts;
#pragma unroll
    for (int i = 0; i < 4; ++i) split(raw[i], parts.high[i], parts.low[i]);
    return parts;
  }
  static __device__ __forceinline__ Right right(uint32_t first, uint32_t second) {
    Right parts;
    split(first, parts.high[0], parts.low[0]);
    split(second, parts.high[1], parts.low[1]);
    return parts;
  }
  static __device__ __forceinline__ void multiply_add(float (&sum)[4], const Left& left, const Right& right) {
    mma_tf32(sum, left.low, right.high[0], right.high[1]);  // small terms first: their sum is not lost to rounding
    mma_tf32(sum, left.high, right.low[0], right.low[1]);
    mma_tf32(sum, left.high, right.high[0], right.high[1]);
  }

 private:
  static __device__ __forceinline__ void split(uint32_t raw, uint32_t& high, uint32_t& low) {
    const float value = bits_float(raw);
    high = to_tf32(value);
    low = to_tf32(value - bits_float(high));
  }
};

// Where a lane's part of a left operand begins: 16 rows of the tile, from `row` on.
template <int kRowBytes>
__device__ __forceinline__ uint32_t left_address(SharedTile<kRowBytes> tile, int row, int lane) {
  return tile.address(row + lane % 16, lane / 16);
}
// Where a lane's part of right operands that are rows begins: two tiles of 8 columns, which are 16 rows of the tile.
template <int kRowBytes>
__device__ __forceinline__ uint32_t right_address(SharedTile<kRowBytes> tile, int lane) {
  return tile.address(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// sums[row, column] += <row of left, row number `column` of right>: scores of the warp's rows, those of `left` from
// `first_row` on, with the columns, over all features.
template <class Math, int kRowBytes, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void add_score_product(float (&sums)[kRowTiles][kColumnTiles][4], SharedTile<kRowBytes> left,
                                                  int first_row, SharedTile<kRowBytes> right, int lane) {
  using Tile = SharedTile<kRowBytes>;
  const uint32_t left_base = left_address(left, first_row, lane), right_base = right_address(right, lane);
  uint32_t raw[4];
#pragma unroll
  for (int k = 0; k < kRowBytes / 32; ++k) {  // a step of the product takes two chunks
    typename Math::Left rows[kRowTiles];
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      ldmatrix_x4(raw, Tile::other_chunk(left_base, 2 * k) + 16 * tile * kRowBytes);
      rows[tile] = Math::left(raw);
    }
#pragma unroll
    for (int pair = 0; pair < kColumnTiles / 2; ++pair) {
      ldmatrix_x4(raw, Tile::other_chunk(right_base, 2 * k) + 16 * pair * kRowBytes);
      const typename Math::Right columns[2] = {Math::right(raw[0], raw[1]), Math::right(raw[2], raw[3])};
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        Math::multiply_add(sums[tile][2 * pair], rows[tile], columns[0]);
        Math::multiply_add(sums[tile][2 * pair + 1], rows[tile], columns[1]);
      }
    }
  }
}

// As add_score_product, without what was in the sums.
template <class Math, int kRowBytes, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void score_product(float (&sums)[kRowTiles][kColumnTiles][4], SharedTile<kRowBytes> left,
                                              int first_row, SharedTile<kRowBytes> right, int lane) {
  clear(sums);
  add_score_product<Math>(sums, left, first_row, right, lane);
}

// sums += weights * features of the tile's tokens, for the feature tiles from the chunk `chunk` on.
template <class Math, int kRowBytes, int kRowTiles, int kColumnTiles, int kFeatureTiles>
__device__ __forceinline__ void weighted_product(float (&sums)[kRowTiles][kFeatureTiles][4],
                                                 const float (&weights)[kRowTiles][kColumnTiles][4],
                                                 SharedTile<kRowBytes> tokens, int chunk, int lane) {
  constexpr int kTileChunks = 8 * sizeof(typename Math::Element) / 16;  // chunks of 8 features
#pragma unroll
  for (int k = 0; k < kColumnTiles * 8 / Math::kDepth; ++k) {
    typename Math::Left rows[kRowTiles];
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) rows[tile] = Math::left_of_sums(weights[tile], k);
#pragma unroll
    for (int pair = 0; pair < kFeatureTiles / 2; ++pair) {
      typename Math::Right features[2];
      Math::load_columns(features, tokens, k, chunk + 2 * pair * kTileChunks, lane);
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        Math::multiply_add(sums[tile][2 * pair], rows[tile], features[0]);
        Math::multiply_add(sums[tile][2 * pair + 1], rows[tile], features[1]);
      }
    }
  }
}

}  // namespace jax_na::cuda
