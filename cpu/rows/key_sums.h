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

// Keys that the lanes of a tile see along the last axis.
inline Range seen_keys(const LaneTile& tile) {
  const int last = tile.count - 1;
  return {tile.start[0] + lane_origin(tile, 0), tile.stop[last] + lane_origin(tile, last)};
}

// Adds the sums of one key row, two keys at a time; `to` is the first key's row in memory, `step` floats before the
// next one's. Windows move with the lanes, so the lanes that see a pair of keys move with the keys.
template <class Packed>
inline void add_key_row(const InputRows<Packed>& inputs, int dim, const LaneTile& tile, float* to, int64_t step) {
  const Range keys = seen_keys(tile);
  const int last = keys.stop - 1;
  Range lanes{0, 0};  // that see either key
  for (int key = keys.start; key <= last; key += 2) {
    const int other = min(key + 1, last);
    while (lanes.start < tile.count && tile.stop[lanes.start] + lane_origin(tile, lanes.start) <= key) ++lanes.start;
    while (lanes.stop < tile.count && tile.start[lanes.stop] + lane_origin(tile, lanes.stop) <= other) ++lanes.stop;
    if (lanes.start >= lanes.stop) continue;
    const OutputPair pair = key_pair(tile, lanes, key, other);
    add_pair(inputs, dim, pair, to + (key - keys.start) * step, to + (other - keys.start) * step, false);
  }
}

// Adds products to memory; nobody else adds to these keys meanwhile.
template <class Packed>
inline void add_key_sums(const BlockLanes& lanes, std::initializer_list<KeySum<Packed>> products) {
  const LaneTile& tile = lanes.tile;
  const int first_key = seen_keys(tile).start;
  for_each_key_row(lanes.block, tile, [&](int z, int y, const SeenBy& seen) {
    const int position[kAxes] = {z, y, first_key};
    const int64_t token = key_token(lanes.problem, lanes.unit.tile, position);
    for (const KeySum<Packed>& product : products) {
      const HeadView<float>& sums = product.sums;
      InputRows<Packed> inputs;
      inputs.rows = 0;
      for (int i = 0; i < seen.count; ++i)
        add_input<Packed>(inputs, block_row(product.rows, seen.row[i], sums.dim), product.scores + seen.at[i]);
      add_key_row(inputs, sums.dim, tile, sums.base + token * sums.stride,
                  lanes.problem.axis[2].dilation * sums.stride);
    }
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
