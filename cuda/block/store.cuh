// SPDX-License-Identifier: Apache-2.0
// Results of a block's rows, from the registers of a warp to memory.
#pragma once

#include "cuda/block/block.cuh"

namespace jax_na::cuda {

// Two neighbouring features of a row of `features` values.
template <class Element>
__device__ __forceinline__ void store_pair(Element* row, int feature, int features, float first, float second) {
  Element pair[2];
  narrow(pair[0], first);
  narrow(pair[1], second);
  if (features % 2 == 0 && feature < features) {  // then the pair is aligned
    using Word = typename WordOf<2 * sizeof(Element)>::type;
    Word word;
    memcpy(&word, pair, sizeof word);
    *reinterpret_cast<Word*>(row + feature) = word;
    return;
  }
  if (feature < features) row[feature] = pair[0];
  if (feature + 1 < features) row[feature + 1] = pair[1];
}

// Calls body(row tile, half, index of the row in [batch, tokens, heads]) for this thread's rows that exist.
template <class S, class Body>
__device__ __forceinline__ void for_each_row(const Geometry& g, const Block& b, int heads, int first_row, int lane,
                                             const Body& body) {
  const Box box = row_box(b);
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = token_of(g, b.rows, b, box, g.tiling.rows, first_row + 16 * m + 8 * half + lane / 4);
      if (token >= 0) body(m, half, (b.batch * b.rows.tokens() + token) * heads + b.head);
    }
}

// values * scale, [batch, tokens, heads, features]: the warp's rows, the features from `first` on.
template <class S, int kFeatureTiles>
__device__ __forceinline__ void store_rows(const Geometry& g, const Block& b, void* to, int heads, int features,
                                           int first, int first_row, int lane,
                                           const float (&values)[S::kRowTiles][kFeatureTiles][4],
                                           const float (&scale)[S::kRowTiles][2]) {
  for_each_row<S>(g, b, heads, first_row, lane, [&](int m, int half, int64_t row) {
    auto* out = static_cast<typename S::Element*>(to) + row * features;
#pragma unroll
    for (int f = 0; f < kFeatureTiles; ++f)
      store_pair(out, first + 8 * f + 2 * (lane % 4), features, values[m][f][2 * half] * scale[m][half],
                 values[m][f][2 * half + 1] * scale[m][half]);
  });
}

}  // namespace jax_na::cuda
