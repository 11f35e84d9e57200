// SPDX-License-Identifier: Apache-2.0
// The launcher of the halo kernels of the gradients of keys and values. CMake compiles this source once for each
// arithmetic, JAX_NA_MATH.
#include "cuda/fused/backward_launch.cuh"
#include "cuda/halo/backward_key.cuh"
#include "cuda/halo/launch.cuh"
#include "cuda/host/launch.h"

namespace jax_na::cuda {

template <class S>
const char* launch_halo_key(const BackwardArgs& a, const HaloSizes& sizes, Stream stream) {
  const auto params = halo_params<S>(a, backward_params<typename S::Math>(a), a.tiles.query, sizes);
  return launch_resident(fused_halo_backward_key_kernel<S>, {params.units, params.call.geometry.tiles}, S::kThreads,
                         params.layout.bytes, stream, params);
}

template <class Math, bool kHasBias, bool kHasMask>
const char* run_halo_key(const BackwardArgs& a, Stream stream) {
  return with_backward_shape<Pass::kBackwardKey, Math, kHasBias, kHasMask>(
      a, [&](auto shape, const HaloSizes& sizes) { return launch_halo_key<decltype(shape)>(a, sizes, stream); });
}

template <class Math>
const char* run_halo_key(const BackwardArgs& a, Stream stream) {
  return with_operands(a, [&](auto has_bias, auto has_mask) {
    return run_halo_key<Math, decltype(has_bias)::value, decltype(has_mask)::value>(a, stream);
  });
}

template const char* run_halo_key<JAX_NA_MATH>(const BackwardArgs&, Stream);

}  // namespace jax_na::cuda
