// SPDX-License-Identifier: Apache-2.0
// The launcher of the halo kernels of the queries' gradient. CMake compiles this source once for each arithmetic,
// JAX_NA_MATH.
#include "cuda/fused/backward_launch.cuh"
#include "cuda/halo/backward_query.cuh"
#include "cuda/halo/launch.cuh"
#include "cuda/host/launch.h"

namespace jax_na::cuda {

template <class S>
const char* launch_halo_query(const BackwardArgs& a, const HaloSizes& sizes, Stream stream) {
  auto params = halo_params<S>(a, backward_params<typename S::Math>(a), a.tiles.query, sizes);
  void (*const kernel)(HaloParams<BackwardParams>) = fused_halo_backward_query_kernel<S>;
  const int64_t tiles = params.call.geometry.tiles;
  if constexpr (!S::kAddsBias)
    return launch_resident(kernel, {params.units, tiles}, S::kThreads, params.layout.bytes, stream, params);
  if (a.drpb_parts < kHaloWarps) return "drpb must have 4 parts or more, one for each warp of a block";
  int blocks = a.drpb_parts / kHaloWarps;
  const int64_t idle = tiles > 0 ? blocks % tiles : 0;
  if (idle < blocks && idle * 10 <= blocks) blocks -= static_cast<int>(idle);  // each keeps its tile then
  params.call.drpb_blocks = blocks;
  const int groups = (a.problem.heads + S::kHeads - 1) / S::kHeads;
  return launch(kernel, int64_t{blocks} * groups, S::kThreads, params.layout.bytes, stream, params);
}

template <class Math, bool kHasBias, bool kHasMask>
const char* run_halo_query(const BackwardArgs& a, Stream stream) {
  return with_backward_shape<Pass::kBackwardQuery, Math, kHasBias, kHasMask>(
      a, [&](auto shape, const HaloSizes& sizes) { return launch_halo_query<decltype(shape)>(a, sizes, stream); });
}

template <class Math>
const char* run_halo_query(const BackwardArgs& a, Stream stream) {
  return with_operands(a, [&](auto has_bias, auto has_mask) {
    return run_halo_query<Math, decltype(has_bias)::value, decltype(has_mask)::value>(a, stream);
  });
}

template const char* run_halo_query<JAX_NA_MATH>(const BackwardArgs&, Stream);

}  // namespace jax_na::cuda
