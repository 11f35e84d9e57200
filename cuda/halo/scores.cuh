// SPDX-License-Identifier: Apache-2.0
// Products of a warp of a halo kernel with its box, whose columns it reads as if they were packed: ldmatrix takes an
// address for each. So the products are done for little more than the windows, and a halo needs no padding.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/arithmetic.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/scores.cuh"
#include "cuda/halo/copies.cuh"
#include "cuda/halo/tables.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// One head of the 16 rows of a warp; `in_row`: number of the head in a row of the halo.
template <class Shape>
struct HaloScores {
  using Math = typename Shape::Math;
  using Scores = typename Shape::Scores;

  const HaloTables<Shape>& tables;
  int in_row;
  int thread;  // renewed: what depends on it occupies no registers outside

  __device__ __forceinline__ int lane() const { return thread % 32; }

  __device__ __forceinline__ const Geometry& geometry() const { return tables.geometry(); }

  // Address of the chunk `chunk` of the box's column number lane % 8, were its columns one after the other: those of a
  // lane all have the same turn.
  __device__ __forceinline__ uint32_t first_address(int offset, int chunk) const {
    const HaloBox box = tables.warp_box();
    const uint32_t turn = HaloTables<Shape>::turn_of(box.number + lane() % 8);
    const uint32_t base = shared_address(tables.shared) + offset + box.place;
    return base + (turn ^ in_row * Shape::kHeadBytes ^ chunk * 16);
  }

  // Products of the warp's 16 rows with the columns of the halo at `offset` that are a part of the box, whose places
  // are in `columns`.
  __device__ __forceinline__ void multiply(Scores& products, const typename Math::Left (&left)[Shape::kSteps],
                                           int offset, const int* columns) const {
    multiply<false>(products, left, offset, columns);
  }
  __device__ __forceinline__ void multiply_add(Scores& products, const typename Math::Left (&left)[Shape::kSteps],
                                               int offset, const int* columns) const {
    multiply<true>(products, left, offset, columns);
  }
  template <bool kAdds>
  __device__ __forceinline__ void multiply(Scores& products, const typename Math::Left (&left)[Shape::kSteps],
                                           int offset, const int* columns) const {
    const uint32_t base = first_address(offset, lane() / 8);
    if constexpr (!kAdds) clear(products);
#pragma unroll
    for (int tile = 0; tile < Shape::kColumnTiles; ++tile) {
      const uint32_t address = base + columns[8 * tile + lane() % 8];
#pragma unroll
      for (int k = 0; k < Shape::kSteps; k += 2) {
        uint32_t raw[4];
        ldmatrix_x4(raw, address ^ k * 32);
        Math::multiply_add(products[0][tile], left[k], Math::right(raw[0], raw[1]));
        Math::multiply_add(products[0][tile], left[k + 1], Math::right(raw[2], raw[3]));
      }
    }
  }

  // What the thread's own rows see of a part, as bits of the thread's own columns.
  __device__ __forceinline__ void find_visible(uint32_t (&visible)[2], int part) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_own_row() + 8 * half;
      if constexpr (Shape::kIsWhole) {
        visible[half] = tables.template at<uint32_t>(tables.p.layout.masks)[row * 4 + lane() % 4];
      } else {
        int position[kAxes];
        tables.row_position(row, position);
        visible[half] = tables.seen(part, position, lane() % 4);
      }
    }
    if constexpr (!Shape::kHasMask || !HaloTables<Shape>::kOfQueries) return;
    const uint32_t existing = tables.existing(part, lane() % 4);
    visible[0] &= existing;
    visible[1] &= existing;
  }

  // Whether the thread's own rows see a key. A row that sees none because of a mask has a result that is known: it is
  // no suspect, as one would be whose scores have all become -inf.
  __device__ __forceinline__ void find_seen(bool (&some)[2]) const {
    uint32_t seen[2] = {};
#pragma unroll 1
    for (int part = 0; part < tables.parts(); ++part) {
      uint32_t visible[2];
      find_visible(visible, part);
      seen[0] |= visible[0];
      seen[1] |= visible[1];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      seen[half] |= shuffle_xor(seen[half], 1);
      some[half] = (seen[half] | shuffle_xor(seen[half], 2)) != 0;  // of the four lanes that share the row
    }
  }

  // Products -> scores: scaled, with bias, -inf where a pair does not see each other.
  __device__ __forceinline__ void finish(Scores& scores, int part) const {
    uint32_t visible[2];
    find_visible(visible, part);
    finish(scores, visible, part);
  }
  __device__ __forceinline__ void finish(Scores& scores, const uint32_t (&visible)[2], int part) const {
    scale_scores(geometry(), scores);
    if constexpr (!Shape::kHasBias) {
      for_each(scores, [&](float& score, Own row, Own column) {
        if (!(visible[row.part] >> column & 1)) score = -INFINITY;
      });
      return;
    }
    const HaloLayout& layout = tables.p.layout;
    const int* columns = tables.template at<int>(layout.bias_columns) + part * Shape::kColumns + first_column(lane());
    const float* bias = tables.template at<float>(layout.bias) + in_row * bias_entries(geometry().problem);
    const int* of_rows = tables.template at<int>(layout.bias_rows) + first_own_row();
    const int of_row[2] = {of_rows[0], of_rows[8]};
    for_each_own<2 * Shape::kColumnTiles>([&](Own column) {
      const int entry = columns[column_step(column)];
      for_each_own<2>([&](Own row) {
        float& score = at(scores, row, column);
        score = visible[row.part] >> column & 1 ? score + bias[entry + of_row[row.part]] : -INFINITY;
      });
    });
  }

  // out += weights * columns of the halo at `offset` that are a part of the box.
  __device__ __forceinline__ void add_weighted(Fragment<1, Shape::kFeatureTiles>& out, const Scores& weights,
                                               int offset, const int* columns) const {
    const uint32_t base = first_address(offset, lane() / 16);
#pragma unroll
    for (int k = 0; k < (Shape::kColumnTiles + 1) / 2; ++k) {
      typename Math::Left left;
      if (2 * k + 1 < Shape::kColumnTiles) {
        left = Math::left_of_sums(weights[0], k);
      } else {
        const float last[2][4] = {
            {weights[0][2 * k][0], weights[0][2 * k][1], weights[0][2 * k][2], weights[0][2 * k][3]}, {}};
        left = Math::left_of_sums(last, 0);
      }
      const uint32_t address = base + columns[16 * k + lane() % 16];
#pragma unroll
      for (int tile = 0; tile < Shape::kFeatureTiles; tile += 2) {
        uint32_t raw[4];
        ldmatrix_x4_trans(raw, address ^ tile * 16);
        Math::multiply_add(out[0][tile], left, Math::right(raw[0], raw[1]));
        Math::multiply_add(out[0][tile + 1], left, Math::right(raw[2], raw[3]));
      }
    }
  }
};

}  // namespace jax_na::cuda
