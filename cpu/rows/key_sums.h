// SPDX-License-Identifier: Apache-2.0
// Sums of the row kernels that go to keys: products of the transposed weights of a block with its queries, added to
// memory key row by key row.
#pragma once

#include <stdint.h>

#include <initializer_list>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cpu/rows/block.h"
#include "cpu/rows/sums.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/tile.h"
#include "cpu/tiles/view.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// A product of the transposed weights of a block: scores, the block's queries as rows [row][lane][dim], where the sums
// of the keys go.
template <class Packed>
struct KeySum {
  const Packed *scores, *rows;
  HeadView<float> sums;
};

// Adds products to memory, two keys at a time; nobody else adds to these keys meanwhile. Windows move with the lanes,
// so the lanes [first, stop) that see either of two keys move on with the keys.
template <class Packed>
inline void add_key_sums(const BlockLanes& lanes, std::initializer_list<KeySum<Packed>> products) {
  const LaneTile& tile = lanes.tile;
  const auto key_at = [&](int lane, const int32_t* column) { return column[lane] + lane_origin(tile, lane); };
  const int first_key = key_at(0, tile.start), last_key = key_at(tile.count - 1, tile.stop) - 1;
  for_each_key_row(lanes.block, tile, [&](int z, int y, const SeenBy& seen) {
    const int position[kAxes] = {z, y, first_key};
    const int64_t token = key_token(lanes.problem, lanes.unit.tile, position);
    for (const KeySum<Packed>& product : products) {
      const int dim = product.sums.dim;
      const int64_t step = lanes.problem.axis[2].dilation * product.sums.stride;
      float* to = product.sums.base + token * product.sums.stride;
      InputRows<Packed> inputs;
      inputs.rows = seen.count;
      for (int i = 0; i < seen.count; ++i) {
        inputs.input[i] = block_row(product.rows, seen.row[i], dim);
        inputs.weight[i] = product.scores + seen.at[i];
      }
      int first = 0, stop = 0;
      for (int key = first_key; key <= last_key; key += 2) {
        const int other = min(key + 1, last_key);
        while (first < tile.count && key_at(first, tile.stop) <= key) ++first;
        while (stop < tile.count && key_at(stop, tile.start) <= other) ++stop;
        if (first >= stop) continue;
        const OutputPair pair = key_pair(tile, {first, stop}, key, other);
        add_pair(inputs, dim, pair, to + (key - first_key) * step, to + (other - first_key) * step, false);
      }
    }
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
