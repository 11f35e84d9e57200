// SPDX-License-Identifier: Apache-2.0
// The launcher of the halo kernels of the forward pass. CMake compiles this source once for each arithmetic,
// JAX_NA_MATH.
#include "common/dispatch.h"
#include "cuda/halo/forward.cuh"
#include "cuda/halo/launch.cuh"
#include "cuda/host/launch.h"

namespace jax_na::cuda {

template <class S>
const char* launch_halo_forward(const ForwardArgs& a, const HaloSizes& sizes, Stream stream) {
  const Problem& p = a.problem;
  ForwardParams call{};
  call.query = make_operand<typename S::Math>(a.query, p.heads, p.head_dim);
  call.key = make_operand<typename S::Math>(a.key, p.kv_heads, p.head_dim);
  call.value = make_operand<typename S::Math>(a.value, p.kv_heads, p.value_dim);
  call.out = a.out;
  call.lse = a.lse;
  call.key_mask = a.key_mask;
  const auto params = halo_params<S>(a, call, a.tiles.query, sizes);
  return launch_resident(fused_halo_forward_kernel<S>, {params.units, params.call.geometry.tiles}, S::kThreads,
                         params.layout.bytes, stream, params);
}

// The kernel for so many features and columns; its result, or that there is none.
template <class Math, bool kHasBias, bool kHasMask>
const char* run_halo_forward(const ForwardArgs& a, Stream stream) {
  const HaloSizes sizes = halo_sizes(a.problem, {Pass::kForward, kHasBias, kHasMask}, a.tiles.query);
  const char* result = kNoKernel;
  match<32, 64, 128>(feature_bucket(a.problem.head_dim, a.problem.value_dim), [&](auto features) {
    match<32, 64, kMostWholeColumns, kPartColumns, kLongPartColumns>(sizes.columns, [&](auto columns) {
      constexpr int kFeatures = decltype(features)::value, kColumns = decltype(columns)::value;
      using Shape = HaloShape<Pass::kForward, Math, kFeatures, kColumns, kHasBias, kHasMask, is_whole_box(kColumns)>;
      if constexpr (has_forward_shape(kFeatures, kColumns, kHasMask))
        result = launch_halo_forward<Shape>(a, sizes, stream);
    });
  });
  return result;
}

template <class Math>
const char* run_halo_forward(const ForwardArgs& a, Stream stream) {
  return with_operands(a, [&](auto has_bias, auto has_mask) {
    return run_halo_forward<Math, decltype(has_bias)::value, decltype(has_mask)::value>(a, stream);
  });
}

template const char* run_halo_forward<JAX_NA_MATH>(const ForwardArgs&, Stream);

}  // namespace jax_na::cuda
