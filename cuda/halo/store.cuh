// SPDX-License-Identifier: Apache-2.0
// Results of a warp of a halo kernel.
#pragma once

#include <stdint.h>

#include "cuda/block/fragment.cuh"
#include "cuda/block/store.cuh"
#include "cuda/block/suspects.cuh"
#include "cuda/halo/copies.cuh"
#include "cuda/halo/tables.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Stores values * scale of a thread's own part of a row, of so many features, at `to`; whether all are finite.
template <class Element, int kFeatureTiles>
__device__ __forceinline__ bool store_halo_row(Element* to, int features, int lane,
                                               const Fragment<1, kFeatureTiles>& values, Own own, float scale) {
  Finite finite;
  for_each_pair(values, own, [&](float first, float second, Own column) {
    first *= scale;
    second *= scale;
    finite.add(first);
    finite.add(second);
    if (column_step(column) < features) store_aligned_pair(to + column_of(column, lane), first, second);
  });
  return finite.all();
}

// The block remembers that a row that a warp has stored is a suspect.
template <class Shape>
__device__ __forceinline__ void note_suspects(const HaloTables<Shape>& tables, int lane, bool all_finite) {
  if (warp_any(!all_finite) && lane == 0) tables.has_suspects() = 1;
}

// Stores values * scale of the thread's own rows; `first_row`: of the head, in [batch, tokens, heads].
template <class Shape>
__device__ __forceinline__ void store_halo_rows(const HaloTables<Shape>& tables, int lane, const Result& to,
                                                int64_t first_row, const Fragment<1, Shape::kFeatureTiles>& values,
                                                float scale) {
  using Element = typename Shape::Element;
  bool all_finite = true;
  for_each_own<2>([&](Own half) {
    const int within = tables.row_place(first_own_row() + 8 * half);
    if (within < 0) return;
    auto* row = static_cast<Element*>(to.data) + (first_row + within) * to.features;
    all_finite = store_halo_row(row, to.features, lane, values, half, scale) && all_finite;
  });
  note_suspects(tables, lane, all_finite);
}

}  // namespace jax_na::cuda
