// SPDX-License-Identifier: Apache-2.0
// The launcher of the halo kernels. CMake compiles this source once for each arithmetic, JAX_NA_MATH.
#include "common/dispatch.h"
#include "cuda/halo/forward.cuh"
#include "cuda/host/arguments.cuh"
#include "cuda/host/launch.h"

namespace jax_na::cuda {

template <class S>
const char* launch_halo_forward(const ForwardArgs& a, const HaloSizes& sizes, Stream stream) {
  const Problem& p = a.problem;
  HaloParams params{};
  ForwardParams& forward = params.forward;
  const int warp_tile[kAxes] = {sizes.axis[0].warp_tile, sizes.axis[1].warp_tile, sizes.axis[2].warp_tile};
  forward.geometry = make_geometry<Side::kQueries>(p, a.tiles.query, warp_tile, a.offsets, a.rpb);
  forward.query = make_operand<typename S::Math>(a.query, p.heads, p.head_dim);
  forward.key = make_operand<typename S::Math>(a.key, p.kv_heads, p.head_dim);
  forward.value = make_operand<typename S::Math>(a.value, p.kv_heads, p.value_dim);
  forward.out = a.out;
  forward.lse = a.lse;
  params.sizes = sizes;
  params.layout = halo_layout(p, sizes, S::kFeatures, a.rpb != nullptr);
  const int64_t units = p.batch * forward.geometry.tiles;
  params.units = static_cast<uint32_t>(units);
  return launch_resident(fused_halo_forward_kernel<S>, {units, forward.geometry.tiles}, S::kThreads,
                         params.layout.bytes, stream, params);
}

// The kernel for so many features and columns; its result, or that there is none.
template <class Math, bool kHasBias>
const char* run_halo_forward(const ForwardArgs& a, Stream stream) {
  const HaloSizes sizes = halo_sizes(a.problem, a.tiles.query);
  const char* result = kNoKernel;
  match<32, 64, 128>(feature_bucket(a.problem.head_dim, a.problem.value_dim), [&](auto features) {
    match<32, 64, kMostWholeKeys, kPartKeys, kLongPartKeys>(sizes.columns, [&](auto columns) {
      constexpr int kFeatures = decltype(features)::value, kColumns = decltype(columns)::value;
      if constexpr (kColumns != kLongPartKeys || has_long_parts(kFeatures))
        result = launch_halo_forward<HaloShape<Math, kFeatures, kColumns, kHasBias>>(a, sizes, stream);
    });
  });
  return result;
}

template <class Math>
const char* run_halo_forward(const ForwardArgs& a, Stream stream) {
  return a.rpb != nullptr ? run_halo_forward<Math, true>(a, stream) : run_halo_forward<Math, false>(a, stream);
}

template const char* run_halo_forward<JAX_NA_MATH>(const ForwardArgs&, Stream);

}  // namespace jax_na::cuda
