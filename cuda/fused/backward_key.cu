// SPDX-License-Identifier: Apache-2.0
// The launcher of the gradients of key and value. CMake compiles this source once for each arithmetic, JAX_NA_MATH.
#include "cuda/fused/backward_key.cuh"
#include "cuda/fused/backward_launch.cuh"

namespace jax_na::cuda {

template <class S>
const char* launch_backward_key(const BackwardArgs& a, BackwardParams params, Stream stream) {
  static_assert(BackwardKeyShared<S>::kBytes <= kSharedLimit);
  constexpr int kParts = key_parts(S::kRowBytes);
  const Problem& p = a.problem;
  if (tokens_of(a.tiles.query) != S::kColumns) return kNoKernel;
  params.geometry = make_geometry<Side::kKeys>(p, a.tiles.key, a.tiles.query, a.offsets, a.rpb);
  return launch(fused_backward_key_kernel<S, kParts>, p.batch * p.kv_heads * params.geometry.tiles * kParts,
                S::kThreads, BackwardKeyShared<S>::kBytes, stream, params);
}

template <class Math>
const char* run_backward_key(const BackwardArgs& a, Stream stream) {
  const BackwardParams params = backward_params<Math>(a);
  return with_shape<Math, Pass::kBackwardKey, false>(
      a.problem, a.tiles.key, [&](auto shape) { return launch_backward_key<decltype(shape)>(a, params, stream); });
}

template const char* run_backward_key<JAX_NA_MATH>(const BackwardArgs&, Stream);

}  // namespace jax_na::cuda
