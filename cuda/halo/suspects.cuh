// SPDX-License-Identifier: Apache-2.0
// The suspects of the halo kernels (block/suspects.cuh). They are looked for in memory, after all tiles: to remember
// them would cost registers where there are none.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/suspects.cuh"
#include "cuda/fused/rows.cuh"
#include "cuda/halo/bias.cuh"
#include "cuda/halo/make.cuh"
#include "cuda/halo/tables.cuh"
#include "cuda/ptx/element.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Calls body(row in [batch, tokens, heads], head) for every row of this warp that exists, all lanes together, but for
// tiles whose windows reach beyond the keys present. `heads`: of the rows' side.
template <class Shape, class Body>
__device__ __forceinline__ void for_each_stored_row(const HaloTables<Shape>& tables, int heads, const Body& body) {
  const auto& params = tables.p;
  const HaloWork<Shape> work(params);
  const int stop = min(work.stop_head, heads);
  const int64_t tokens = HaloTables<Shape>::kOfQueries ? query_tokens(tables.problem()) : key_tokens(tables.problem());
  const uint32_t tiles = params.call.geometry.tiles;
  uint32_t opened = tiles;
#pragma unroll 1
  for (uint32_t unit = work.first; unit < params.units; unit += work.step) {
    HaloMaker<Shape>{tables}.open(unit % tiles, opened);
    if (!tables.has_rows() || !tables.is_complete()) continue;
#pragma unroll 1
    for (int i = 0; i < 16; ++i) {
      const int within = tables.row_place(static_cast<int>(threadIdx.x) / 32 * 16 + i);
      if (within < 0) continue;
#pragma unroll 1
      for (int head = work.first_head; head < stop; ++head) body(unit / tiles * tokens * heads + within + head, head);
    }
  }
}

// Whether a row of `features` values has one that is not finite.
template <class Element>
__device__ __forceinline__ bool is_suspect(const void* data, int64_t row, int features) {
  Finite finite;
  for (int feature = static_cast<int>(threadIdx.x) % 32; feature < features; feature += 32)
    finite.add(widen(static_cast<const Element*>(data)[row * features + feature]));
  return warp_any(!finite.all());
}

template <class Shape>
__device__ __noinline__ void compute_suspects(const HaloParams<ForwardParams>& params, char* shared) {
  using Element = typename Shape::Element;
  const HaloTables<Shape> tables{params, shared};
  const ForwardParams& call = params.call;
  for_each_stored_row(tables, call.query.heads, [&](int64_t row, int) {
    if (is_suspect<Element>(call.out, row, call.value.features))
      attend_again<Element, Shape::kHasMask>(call, tables.room(), row);
  });
}

// Queries whose LSE is not exact are among them; their dS is still to be added to the warp's part of drpb.
template <class Shape>
__device__ __noinline__ void compute_query_suspects(const HaloParams<BackwardParams>& params, char* shared) {
  using Element = typename Shape::Element;
  const HaloTables<Shape> tables{params, shared};
  const BackwardParams& call = params.call;
  for_each_stored_row(tables, call.query.heads, [&](int64_t row, int head) {
    if (is_suspect<Element>(call.dquery, row, call.query.features))
      find_query_gradient<Element, Shape::kHasMask>(call, tables.room(), row);
    if (!Shape::kAddsBias || has_exact_lse(call.lse[row])) return;
    const AttentionOperands<Element> operands =
        gradient_operands_of<Element, Shape::kHasMask>(call, placed(call.geometry, tables.room()));
    bias_gradient_row(WarpTeam<Element>{}, operands, row, halo_slot(call, own_halo_part(call), head));
  });
}

template <class Shape>
__device__ __noinline__ void compute_key_suspects(const HaloParams<BackwardParams>& params, char* shared) {
  using Element = typename Shape::Element;
  const HaloTables<Shape> tables{params, shared};
  const BackwardParams& call = params.call;
  for_each_stored_row(tables, call.key.heads, [&](int64_t row, int) {
    if (is_suspect<Element>(call.dkey, row, call.key.features) ||
        is_suspect<Element>(call.dvalue, row, call.value.features))
      find_key_gradients<Element, Shape::kHasMask>(call, tables.room(), row, {0, Shape::kFeatures});
  });
}

}  // namespace jax_na::cuda
