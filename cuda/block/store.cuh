// SPDX-License-Identifier: Apache-2.0
// Results of a block's rows, from the registers of a warp to memory.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/suspects.cuh"
#include "cuda/block/tokens.cuh"
#include "cuda/block/warp.cuh"
#include "cuda/ptx/element.cuh"

namespace jax_na::cuda {

// Stores two neighbouring values where both are in one word.
template <class Element>
__device__ __forceinline__ void store_aligned_pair(Element* to, float first, float second) {
  Element pair[2];
  narrow(pair[0], first);
  narrow(pair[1], second);
  using Word = typename WordOf<2 * sizeof(Element)>::type;
  Word word;
  memcpy(&word, pair, sizeof word);
  *reinterpret_cast<Word*>(to) = word;
}

// Stores two neighbouring features of a row of `features` values.
template <class Element>
__device__ __forceinline__ void store_pair(Element* row, int feature, int features, float first, float second) {
  if (features % 2 == 0 && feature < features) {
    store_aligned_pair(row + feature, first, second);
    return;
  }
  if (feature < features) narrow(row[feature], first);
  if (feature + 1 < features) narrow(row[feature + 1], second);
}

// Calls body(number, index of the row in [batch, tokens, heads]) for this thread's rows that exist.
template <class Shape, class Body>
__device__ __forceinline__ void for_each_row(const Warp<Shape>& warp, int heads, const Body& body) {
  const Geometry& geometry = warp.geometry;
  const Block& block = warp.block;
  const Box box = row_box(block);
  for_each_own<Shape::kThreadRows>([&](Own number) {
    const int64_t token = token_of(geometry, block.rows, block, box, geometry.tiling.rows, warp.row(number));
    if (token >= 0) body(number, (block.batch * block.rows.tokens() + token) * heads + block.head);
  });
}

// An array [batch, tokens, heads, features], and the first feature that the values are.
struct Result {
  void* data;
  int heads, features, first = 0;
};

// Stores values * scale, a scale for each of the thread's rows. Rows with a value that is not finite are suspects.
template <class Shape, int kFeatureTiles>
__device__ __forceinline__ Suspects store_rows(const Warp<Shape>& warp, const Result& to,
                                               const float (&values)[Shape::kRowTiles][kFeatureTiles][4],
                                               const float (&scale)[Shape::kThreadRows]) {
  Suspects suspects{warp.first_row, 0};
  for_each_row(warp, to.heads, [&](Own number, int64_t row) {
    auto* out = static_cast<typename Shape::Element*>(to.data) + row * to.features;
    Finite finite;
    for_each_pair(values, number, [&](float first, float second, Own column) {
      first *= scale[number];
      second *= scale[number];
      finite.add(first);
      finite.add(second);
      store_pair(out, to.first + warp.column(column), to.features, first, second);
    });
    if (!finite.all()) suspects.rows |= 1u << number;
  });
  return suspects;
}

// Stores values * scale, the same scale for all.
template <class Shape, int kFeatureTiles>
__device__ __forceinline__ Suspects store_rows(const Warp<Shape>& warp, const Result& to,
                                               const float (&values)[Shape::kRowTiles][kFeatureTiles][4], float scale) {
  float scales[Shape::kThreadRows];
  for_each_own<Shape::kThreadRows>([&](Own row) { scales[row] = scale; });
  return store_rows(warp, to, values, scales);
}

}  // namespace jax_na::cuda
