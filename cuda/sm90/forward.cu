// SPDX-License-Identifier: Apache-2.0
// The launcher of the forward kernel for compute capability 9.0: tensor maps are encoded here, by the host, and travel
// as parameters of the kernel, so that a CUDA graph keeps them. CMake compiles this source once for each element type,
// JAX_NA_MATH.
#include "common/dispatch.h"
#include "cuda/fused/config.h"
#include "cuda/host/arguments.cuh"
#include "cuda/host/launch.h"
#include "cuda/ptx/tensor_map.h"
#include "cuda/sm90/forward.cuh"

namespace jax_na::cuda {

// One operand as CopiedOperand says; tokens along the axes of the grid.
struct OperandView {
  const void* data;
  const int (&tokens)[kAxes];
  int heads, features;
};

// To be copied in tiles of `tile` positions, panel by panel. Null, or what went wrong.
template <class S>
const char* encode_operand(CopiedOperand& operand, const Problem& p, const OperandView& x, const int (&tile)[kAxes]) {
  operand.data = x.data;
  operand.heads = x.heads;
  const uint64_t row_stride = uint64_t{2} * static_cast<uint64_t>(x.features);
  TensorView view{};
  view.data = x.data;
  view.swizzle = S::kSwizzle;
  for (uint32_t& step : view.step) step = 1;
  view.extent[0] = x.features;
  view.count[0] = S::kPanelFeatures;
  uint64_t stride = row_stride * x.heads;  // of tokens that are neighbours along an axis
  for (int a = kAxes - 1; a >= 0; --a) {
    view.count[kAxes - a] = tile[a];
    view.stride[kAxes - a - 1] = stride * p.axis[a].dilation;
    stride *= x.tokens[a];
  }
  view.extent[1 + kAxes] = p.batch * (stride / row_stride);
  view.stride[kAxes] = row_stride;
  view.count[1 + kAxes] = 1;
  for (int longer = 0; longer < 1 << kAxes; ++longer) {
    bool exists = true;
    for (int a = 0; a < kAxes; ++a) {
      const int is_longer = longer >> a & 1, length = x.tokens[a] / p.axis[a].dilation + is_longer;
      exists = exists && (is_longer == 0 || x.tokens[a] % p.axis[a].dilation != 0);
      view.extent[kAxes - a] = max(1, length);  // nobody reads the map of groups without tokens
    }
    if (!exists) continue;
    if (const char* error = encode_tensor_map(operand.maps[longer], view)) return error;
  }
  return nullptr;
}

template <class S>
const char* launch_hopper_forward(const ForwardArgs& a, Stream stream) {
  static_assert(HopperShared<S>::kBytes <= kSharedLimitHopper);
  const Problem& p = a.problem;
  const Tiles& tiles = a.tiles;
  if (tokens_of(tiles.query) != S::kRows || tokens_of(tiles.key) != S::kColumns) return kNoKernel;
  if (p.batch == 0) return nullptr;  // no tensor map has an axis of length 0
  HopperForwardParams params{};
  params.geometry = make_geometry<Side::kQueries>(p, tiles.query, tiles.key, a.offsets, nullptr);
  params.owned = make_owned_columns(params.geometry.tiling);
  params.out = a.out;
  params.lse = a.lse;
  const auto encode = [&](CopiedOperand& operand, const OperandView& x, const int (&tile)[kAxes]) {
    return encode_operand<S>(operand, p, x, tile);
  };
  const char* error = encode(params.query, {a.query, p.nq, p.heads, p.head_dim}, tiles.query);
  if (error == nullptr) error = encode(params.key, {a.key, p.nk, p.kv_heads, p.head_dim}, tiles.key);
  if (error == nullptr) error = encode(params.value, {a.value, p.nk, p.kv_heads, p.value_dim}, tiles.key);
  if (error != nullptr) return error;
  return launch(fused_hopper_forward_kernel<S>, p.batch * p.heads * params.geometry.tiles, S::kThreads,
                HopperShared<S>::kBytes, stream, params);
}

template <class Type>
const char* run_hopper_forward(const ForwardArgs& a, Stream stream) {
  const char* result = kNoKernel;
  match<32, 64, 128, 256>(feature_bucket(a.problem.head_dim, a.problem.value_dim), [&](auto features) {
    result = launch_hopper_forward<HopperShape<Type, decltype(features)::value>>(a, stream);
  });
  return result;
}

#ifdef JAX_NA_MATH  // the tests include this source for kernels of their own
template const char* run_hopper_forward<JAX_NA_MATH>(const ForwardArgs&, Stream);
#endif

}  // namespace jax_na::cuda
