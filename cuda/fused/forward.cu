// SPDX-License-Identifier: Apache-2.0
// The launcher of the forward kernels. CMake compiles this source once for each arithmetic, JAX_NA_MATH.
#include "cuda/fused/forward.cuh"
#include "cuda/fused/launch.cuh"

namespace jax_na::cuda {

template <class S, bool kIsExtended>
const char* launch_forward(const ForwardArgs& a, Stream stream) {
  const Problem& p = a.problem;
  static_assert(ForwardShared<S>::kBytes <= kSharedLimit);
  if (tokens_of(a.tiles.key) != S::kColumns) return kNoKernel;
  ForwardParams params{};
  params.geometry = make_geometry<Side::kQueries>(p, a.tiles.query, a.tiles.key, a.offsets, a.rpb);
  params.query = make_operand<typename S::Math>(a.query, p.heads, p.head_dim);
  params.key = make_operand<typename S::Math>(a.key, p.kv_heads, p.head_dim);
  params.value = make_operand<typename S::Math>(a.value, p.kv_heads, p.value_dim);
  params.tokens = make_additional<typename S::Math>(a.tokens, p);
  params.out = a.out;
  params.lse = a.lse;
  params.key_mask = a.key_mask;
  return launch(fused_forward_kernel<S, kIsExtended>, p.batch * p.heads * params.geometry.tiles, S::kThreads,
                ForwardShared<S>::kBytes, stream, params);
}

template <class Math>
const char* run_forward(const ForwardArgs& a, Stream stream) {
  const auto run = [&](auto extended) {
    constexpr bool kIsExtended = decltype(extended)::value;
    return with_shape<Math, Pass::kForward, kIsExtended>(
        a.problem, a.tiles.query, [&](auto shape) { return launch_forward<decltype(shape), kIsExtended>(a, stream); });
  };
  return is_extended(a) ? run(std::true_type{}) : run(std::false_type{});
}

template const char* run_forward<JAX_NA_MATH>(const ForwardArgs&, Stream);

}  // namespace jax_na::cuda
