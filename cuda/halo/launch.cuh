// SPDX-License-Identifier: Apache-2.0
// What the launchers of the halo kernels share.
#pragma once

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

}  // namespace jax_na::cuda
