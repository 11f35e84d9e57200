// SPDX-License-Identifier: Apache-2.0
// What the launchers of the halo kernels share.
#pragma once

#include <type_traits>

#include "common/dispatch.h"
#include "cuda/halo/config.h"
#include "cuda/halo/shape.cuh"
#include "cuda/host/arguments.cuh"

namespace jax_na::cuda {

// `call` has the arrays; `tile` is one of rows.
template <class Shape, class Args>
HaloParams<typename Shape::Call> halo_params(const Args& a, const typename Shape::Call& call, const int (&tile)[kAxes],
                                             const HaloSizes& sizes) {
  const int warp_tile[kAxes] = {sizes.axis[0].warp_tile, sizes.axis[1].warp_tile, sizes.axis[2].warp_tile};
  HaloParams<typename Shape::Call> params{call, sizes, halo_layout(a.problem, sizes, Shape::kUse), 0};
  params.call.geometry = make_geometry<Shape::kRowSide>(a.problem, tile, warp_tile, a.offsets, a.rpb);
  params.units = static_cast<uint32_t>(a.problem.batch * params.call.geometry.tiles);
  return params;
}

// Calls run(whether the call has a bias, whether it has a mask), constants.
template <class Args, class Run>
const char* with_operands(const Args& a, const Run& run) {
  const auto with_bias = [&](auto has_mask) {
    return a.rpb != nullptr ? run(std::true_type{}, has_mask) : run(std::false_type{}, has_mask);
  };
  return a.key_mask != nullptr ? with_bias(std::true_type{}) : with_bias(std::false_type{});
}

// Calls launch(shape, sizes) with the shape of a backward kernel for so many features and columns; its result, or that
// there is none.
template <Pass kPass, class Math, bool kHasBias, bool kHasMask, class Launch>
const char* with_backward_shape(const BackwardArgs& a, const Launch& launch) {
  const HaloSizes sizes = halo_sizes(a.problem, {kPass, kHasBias, kHasMask}, a.tiles.query);
  const char* result = kNoKernel;
  match<32, 64, 128>(feature_bucket(a.problem.head_dim, a.problem.value_dim), [&](auto features) {
    match<kFewColumns, kMiddleColumns, kManyColumns>(sizes.columns, [&](auto columns) {
      using Shape = HaloShape<kPass, Math, decltype(features)::value, decltype(columns)::value, kHasBias, kHasMask>;
      if constexpr (has_backward_shape(Shape::kUse, Shape::kFeatures, Shape::kColumns)) result = launch(Shape{}, sizes);
    });
  });
  return result;
}

}  // namespace jax_na::cuda
