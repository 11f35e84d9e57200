// SPDX-License-Identifier: Apache-2.0
// From the arguments of a call to the GEMM kernel for it: run-time sizes become template arguments here.
#pragma once

#include "cuda/fused/launch.cuh"
#include "cuda/gemm/av.cuh"
#include "cuda/gemm/inverse.cuh"
#include "cuda/gemm/qk.cuh"

namespace jax_na::cuda {

constexpr char kBadGemmTiles[] = "there is no GEMM kernel for these tiles";
constexpr char kBadPitch[] = "rows of weights are not whole pieces of 16 bytes";

// One arithmetic, in a source file of its own.
template <class Math>
const char* run_gemm(Unfused, const GemmArgs&, Stream);

template <class Math>
GemmParams gemm_params(Unfused operation, const GemmArgs& a, const GemmShape& shape) {
  const Problem& p = a.problem;
  const bool keys_stay = operation == Unfused::kInverse;
  GemmParams params{};
  params.geometry = keys_stay ? make_geometry<Side::kKeys>(p, a.tiles.key, a.tiles.query, a.offsets, nullptr)
                              : make_geometry<Side::kQueries>(p, a.tiles.query, a.tiles.key, a.offsets, nullptr);
  params.queries = make_operand<Math>(a.x, p.heads, p.value_dim);
  params.keys = make_operand<Math>(a.y, p.kv_heads, p.value_dim);
  params.weights = a.weights;
  params.out = operation == Unfused::kQk ? a.weights : keys_stay ? a.y : a.x;
  params.staging = keys_stay ? make_staging(shape, p, a.tiles.key, a.tiles.query)
                             : make_staging(shape, p, a.tiles.query, a.tiles.key);
  for (int axis = 0; axis < kAxes; ++axis) params.slot_stride[axis] = slot_stride(p, axis);
  params.pitch = p.pitch;
  params.slices = max(1, ceil_div(p.value_dim, shape.features));
  return params;
}

template <class S>
const char* launch_gemm(Unfused operation, const GemmArgs& a, Stream stream) {
  const bool keys_stay = operation == Unfused::kInverse;
  const Problem& p = a.problem;
  if (volume(keys_stay ? a.tiles.query : a.tiles.key) != S::kColumns) return kBadGemmTiles;
  const GemmShape shape = gemm_shape(operation, sizeof(typename S::Element), p.value_dim, S::kRows);
  if (p.pitch % shape.vector() != 0 || reinterpret_cast<uintptr_t>(a.weights) % 16 != 0) return kBadPitch;
  const GemmParams params = gemm_params<typename S::Math>(operation, a, shape);
  if (params.staging.slots == 0) return kBadGemmTiles;

  const int64_t tiles = p.batch * (keys_stay ? p.kv_heads : p.heads) * params.geometry.tiles;
  auto run = [&](void (*kernel)(GemmParams), int64_t blocks) {
    return launch(kernel, blocks, S::kThreads, params.staging.bytes, stream, params);
  };
  if (operation == Unfused::kQk) return run(gemm_qk_kernel<S>, tiles);
  return run(keys_stay ? gemm_inverse_kernel<S> : gemm_av_kernel<S>, tiles * params.slices);
}

template <class Math>
const char* run_gemm(Unfused operation, const GemmArgs& a, Stream stream) {
  constexpr int kBytes = sizeof(typename Math::Element);
  if (!is_power_of_two(a.tiles.query) || !is_power_of_two(a.tiles.key)) return kBadGemmTiles;
  const char* result = kBadGemmTiles;
  match<32, 64, 128>(gemm_bucket(kBytes, a.problem.value_dim), [&](auto features) {
    constexpr int kFeatures = decltype(features)::value;
    match<16, 64>(volume(operation == Unfused::kInverse ? a.tiles.key : a.tiles.query), [&](auto rows) {
      [[maybe_unused]] constexpr int kRows = decltype(rows)::value;
      if constexpr (kFeatures * kBytes <= kWidestRow)
        result = launch_gemm<KernelShape<Math, kFeatures, kRows / 16, 1, gemm_columns(kRows), kGemmStages>>(operation,
                                                                                                            a, stream);
    });
  });
  return result;
}

}  // namespace jax_na::cuda
