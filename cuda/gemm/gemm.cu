// SPDX-License-Identifier: Apache-2.0
// The launcher of the GEMM kernels. CMake compiles this source once for each arithmetic, JAX_NA_MATH.
#include "common/dispatch.h"
#include "cuda/gemm/av.cuh"
#include "cuda/gemm/inverse.cuh"
#include "cuda/gemm/qk.cuh"
#include "cuda/host/arguments.cuh"
#include "cuda/host/launch.h"

namespace jax_na::cuda {

template <class Math>
GemmParams gemm_params(Pass pass, const UnfusedArgs& a, const GemmShape& shape) {
  const Problem& p = a.problem;
  const bool keys_stay = pass == Pass::kInverse;
  GemmParams params{};
  params.geometry = keys_stay ? make_geometry<Side::kKeys>(p, a.tiles.key, a.tiles.query, a.offsets, nullptr)
                              : make_geometry<Side::kQueries>(p, a.tiles.query, a.tiles.key, a.offsets, nullptr);
  params.queries = make_operand<Math>(a.x, p.heads, p.value_dim);
  params.keys = make_operand<Math>(a.y, p.kv_heads, p.value_dim);
  params.weights = a.weights;
  params.out = pass == Pass::kQk ? a.weights : keys_stay ? a.y : a.x;
  params.staging = keys_stay ? make_staging(shape, p, a.tiles.key, a.tiles.query)
                             : make_staging(shape, p, a.tiles.query, a.tiles.key);
  for (int axis = 0; axis < kAxes; ++axis) params.slot_stride[axis] = slot_stride(p, axis);
  params.pitch = p.pitch;
  params.slices = max(1, ceil_div(p.value_dim, shape.features));
  return params;
}

template <class S>
const char* launch_gemm(Pass pass, const UnfusedArgs& a, Stream stream) {
  const bool keys_stay = pass == Pass::kInverse;
  const Problem& p = a.problem;
  if (tokens_of(keys_stay ? a.tiles.query : a.tiles.key) != S::kColumns) return kNoKernel;
  const GemmShape shape = gemm_shape(pass, sizeof(typename S::Element), p.value_dim, S::kRows);
  const GemmParams params = gemm_params<typename S::Math>(pass, a, shape);
  if (params.staging.slots == 0) return kNoKernel;

  const int64_t tiles = p.batch * (keys_stay ? p.kv_heads : p.heads) * params.geometry.tiles;
  auto run = [&](void (*kernel)(GemmParams), int64_t blocks) {
    return launch(kernel, blocks, S::kThreads, params.staging.bytes, stream, params);
  };
  if (pass == Pass::kQk) return run(gemm_qk_kernel<S>, tiles);
  return run(keys_stay ? gemm_inverse_kernel<S> : gemm_av_kernel<S>, tiles * params.slices);
}

template <class Math>
const char* run_gemm(Pass pass, const UnfusedArgs& a, Stream stream) {
  constexpr int kBytes = sizeof(typename Math::Element);
  const char* result = kNoKernel;
  match<32, 64, 128>(gemm_bucket(kBytes, a.problem.value_dim), [&](auto features) {
    constexpr int kFeatures = decltype(features)::value;
    match<16, 64>(tokens_of(pass == Pass::kInverse ? a.tiles.key : a.tiles.query), [&](auto rows) {
      [[maybe_unused]] constexpr int kRows = decltype(rows)::value;
      if constexpr (kFeatures * kBytes <= kWidestRow)
        result =
            launch_gemm<KernelShape<Math, kFeatures, kRows / 16, 1, gemm_columns(kRows), kGemmStages>>(pass, a, stream);
    });
  });
  return result;
}

template const char* run_gemm<JAX_NA_MATH>(Pass, const UnfusedArgs&, Stream);

}  // namespace jax_na::cuda
