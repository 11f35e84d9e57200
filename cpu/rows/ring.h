// SPDX-License-Identifier: Apache-2.0
// Packing tokens for the row kernels: key rows in a ring, transposed or natural, and the queries of a block.
#pragma once

#include "cpu/rows/grid.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// Packed key rows of the present block. Rows along axis 1 share `slots` places in turn, so that going down a run every
// row is packed once.
struct Ring {
  Range z, columns;
  int slots;
  int packed;  // rows before this one (along axis 1) have been packed
};

inline Ring make_ring(const Problem& p, const RowUnit& unit) {
  const auto keys = [&](int a) {
    return tile_keys(p.axis[a], unit.tile.group[a].length, unit.queries[a].start, unit.queries[a].stop - 1);
  };
  return {keys(0), keys(2), visited_keys(p.axis[1], p.tile[1]), INT32_MIN};
}

inline int slot(const Ring& ring, int z, int y) { return (z - ring.z.start) * ring.slots + y % ring.slots; }

template <class E>
inline E* transposed_row(const Ring& ring, E* base, int dim, int z, int y) {
  return base + int64_t{slot(ring, z, y)} * padded(dim) * transposed_pitch(extent(ring.columns)) + kWidth;
}
template <class E>
inline E* natural_row(const Ring& ring, E* base, int dim, int z, int y) {
  return base + int64_t{slot(ring, z, y)} * padded(dim) * extent(ring.columns);
}

// Floats of all transposed rows of a ring.
inline int64_t ring_floats(const Ring& ring, int dim) {
  return int64_t{extent(ring.z)} * ring.slots * padded(dim) * transposed_pitch(extent(ring.columns));
}

// Calls body(z, y, key token) for the key rows of a block that are not packed yet.
template <class Body>
inline void fill_rows(const Problem& p, const RowUnit& unit, const Block& block, Ring& ring, const Body& body) {
  for (int y = max(ring.packed, block.keys[1].start); y < block.keys[1].stop; ++y)
    for (int z = ring.z.start; z < ring.z.stop; ++z) {
      const int position[kAxes] = {z, y, ring.columns.start};
      body(z, y, key_token(p, unit.tile, position));
    }
  ring.packed = block.keys[1].stop;
}

// One element of a token, along its features.
template <class E, class T>
inline E element_at(const T* token, int d, int dim) {
  if constexpr (kTerms<E> == 2)
    return {token[2 * d], 2 * d + 1 < dim ? token[2 * d + 1] : T{}};
  else
    return to_accumulator(token[d]);
}

// to[d * pitch + j] = factor * token_j[d] for `count` tokens `step` apart; whole registers are written. Pairs are of
// features, and are not scaled.
template <class T, class E>
inline void pack_transposed(const T* token, int64_t step, int count, int dim, float factor, E* to, ptrdiff_t pitch) {
  const int elements = row_elements<E>(Along::kFeatures, dim);
  for (int j = 0; j < count; j += kWidth, token += kWidth * step) {
    const T* from[kWidth];
    for (int i = 0; i < kWidth; ++i) from[i] = token + min(i, count - j - 1) * step;
    int d = 0;
    for (; d + kWidth <= dim / kTerms<E>; d += kWidth) {
      Vec row[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) row[i] = load_elements<E>(from[i], d, dim);
      transpose(row);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(to + (d + i) * pitch + j, scaled<E>(row[i], factor));
    }
    for (; d < elements; ++d)
      for (int i = 0; i < kWidth; ++i) {
        to[d * pitch + j + i] = element_at<E>(from[i], d, dim);
        if constexpr (kTerms<E> == 1) to[d * pitch + j + i] *= factor;
      }
  }
}

// to[j][d] = factor * token_j[d], rows padded with zeros to whole registers.
template <class T>
inline void pack_natural(const T* token, int64_t step, int count, int dim, float factor, float* to) {
  for (int j = 0; j < count; ++j, token += step, to += padded(dim)) {
    int d = 0;
    for (; d + kWidth <= dim; d += kWidth) store(to + d, load_wide(token + d) * splat(factor));
    if (d < dim) store(to + d, load_wide(token + d, dim - d) * splat(factor));
  }
}
// to[j][d] = the pair (token_j[d], token_{j+1}[d]): every token begins one, because windows begin anywhere. The last
// one is with zero.
inline void pack_natural(const BFloat16* token, int64_t step, int count, int dim, float, BFloat16Pair* to) {
  for (int j = 0; j < count; ++j, token += step, to += padded(dim))
    for (int d = 0; d < dim; d += kWidth)
      store(to + d,
            pair_exactly(load_wide(token + d, dim - d), j + 1 < count ? load_wide(token + step + d, dim - d) : Vec{}));
}

// token_j[d] = factor(j) * rows[j][d], the other way round.
template <class T, class Factor>
inline void unpack_natural(const float* rows, int count, int dim, const Factor& factor, T* token, int64_t step) {
  for (int j = 0; j < count; ++j, rows += padded(dim), token += step)
    for (int d = 0; d < dim; d += kWidth) store_narrow(token + d, load(rows + d) * splat(factor(j)), dim - d);
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
