// SPDX-License-Identifier: Apache-2.0
// From the arguments of a call to the kernels for it: run-time sizes become template arguments here.
#pragma once

#include <cmath>
#include <type_traits>

#include "common/dispatch.h"
#include "cuda/fused/backward_key.cuh"
#include "cuda/fused/backward_query.cuh"
#include "cuda/fused/config.h"
#include "cuda/fused/forward.cuh"
#include "cuda/host/kernels.h"
#include "cuda/host/launch.h"

namespace jax_na::cuda {

constexpr char kBadTiles[] = "there is no fused kernel for these tiles";
constexpr char kTooWide[] = "the fused kernels take up to 256 features per head";

// One launcher per arithmetic, each in a source file of its own.
template <class Math>
const char* run_forward(const ForwardArgs&, Stream);
template <class Math>
const char* run_backward_query(const BackwardArgs&, Stream);
template <class Math>
const char* run_backward_key(const BackwardArgs&, Stream);

template <class Math, int kFeatures, int kRows, Pass pass>
struct ShapeFor {
  static constexpr int kRowBytes = kFeatures * static_cast<int>(sizeof(typename Math::Element));
  static constexpr int kWarps = kRows == kLargeRows ? 4 : kRows / 16;
  using type = KernelShape<Math, kFeatures, kWarps, kRows / 16 / kWarps, streamed_tokens(pass, kRowBytes, kRows),
                           stages(pass, kRowBytes, kRows)>;
};

inline int volume(const int (&tile)[kAxes]) { return tile[0] * tile[1] * tile[2]; }

inline bool is_power_of_two(const int (&tile)[kAxes]) {
  for (int extent : tile)
    if (extent < 1 || (extent & (extent - 1)) != 0) return false;
  return true;
}

inline bool is_chunked(const void* data, int features, int element_bytes) {
  return features * element_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

template <class Math>
Operand make_operand(const void* data, int heads, int features) {
  return {data, heads, features, is_chunked(data, features, sizeof(typename Math::Element))};
}

template <class Math>
AdditionalTokens make_additional(const Additional& a, const Problem& p) {
  return {make_operand<Math>(a.key, p.kv_heads, p.head_dim), make_operand<Math>(a.value, p.kv_heads, p.value_dim),
          a.tokens};
}

// Scores become exponents of 2 by a positive factor, applied together with the subtraction of their maximum. A bias, a
// scale that is not positive, need a multiplication of their own before.
template <Side rows>
Geometry make_geometry(const Problem& p, const int (&row_tile)[kAxes], const int (&column_tile)[kAxes],
                       const int32_t* offsets, const float* rpb) {
  Geometry g{};
  g.problem = p;
  g.tiling = make_tiling<rows>(p, row_tile, column_tile);
  g.repeats = make_repeats(g.tiling);
  g.tiles = static_cast<uint32_t>(tile_count(p, g.tiling));
  g.offsets = offsets;
  g.rpb = rpb;
  const float scale = static_cast<float>(p.scale), exponents = std::abs(scale) * kLog2E;
  if (rpb != nullptr) {
    g.premultiplier = scale * kLog2E;
    g.factor = 1;
  } else {
    g.premultiplier = scale > 0 ? 1.f : scale < 0 ? -1.f : 0.f;
    g.factor = scale != 0 ? exponents : 1.f;
  }
  return g;
}

template <class S, bool kHasTokens>
const char* launch_forward(const ForwardArgs& a, Stream stream) {
  const Problem& p = a.problem;
  static_assert(ForwardShared<S>::kBytes <= kSharedLimit);
  if (volume(a.tiles.key) != S::kColumns) return kBadTiles;
  ForwardParams params{};
  params.geometry = make_geometry<Side::kQueries>(p, a.tiles.query, a.tiles.key, a.offsets, a.rpb);
  params.query = make_operand<typename S::Math>(a.query, p.heads, p.head_dim);
  params.key = make_operand<typename S::Math>(a.key, p.kv_heads, p.head_dim);
  params.value = make_operand<typename S::Math>(a.value, p.kv_heads, p.value_dim);
  params.tokens = make_additional<typename S::Math>(a.additional, p);
  params.out = a.out;
  params.lse = a.lse;
  return launch(fused_forward_kernel<S, kHasTokens>, p.batch * p.heads * params.geometry.tiles, S::kThreads,
                ForwardShared<S>::kBytes, stream, params);
}

// Calls body(Shape) for the kernel with these features and rows; its result, or what is wrong with them.
template <class Math, Pass pass, bool kHasTokens, class Body>
const char* with_shape(const Problem& p, const Tiles& tiles, const int (&row_tile)[kAxes], const Body& body) {
  if (!is_power_of_two(tiles.query) || !is_power_of_two(tiles.key)) return kBadTiles;
  const char* result = kBadTiles;
  const bool found = match<32, 64, 128, 256>(feature_bucket(p.head_dim, p.value_dim), [&](auto features) {
    constexpr int kFeatures = decltype(features)::value, kBytes = sizeof(typename Math::Element);
    match<kSmallRows, 32, 64, kLargeRows>(volume(row_tile), [&](auto rows) {
      constexpr int kRows = decltype(rows)::value;
      if constexpr (has_shape(pass, kFeatures * kBytes, kBytes, kRows, kHasTokens))
        result = body(typename ShapeFor<Math, kFeatures, kRows, pass>::type{});
    });
  });
  return found ? result : kTooWide;
}

template <class Math>
const char* run_forward(const ForwardArgs& a, Stream stream) {
  const auto run = [&](auto has_tokens) {
    constexpr bool kHasTokens = decltype(has_tokens)::value;
    return with_shape<Math, Pass::kForward, kHasTokens>(a.problem, a.tiles, a.tiles.query, [&](auto shape) {
      return launch_forward<decltype(shape), kHasTokens>(a, stream);
    });
  };
  return a.additional.tokens > 0 ? run(std::true_type{}) : run(std::false_type{});
}

template <class Math>
BackwardParams backward_params(const BackwardArgs& a) {
  const Problem& p = a.problem;
  BackwardParams params{};
  params.query = make_operand<Math>(a.query, p.heads, p.head_dim);
  params.key = make_operand<Math>(a.key, p.kv_heads, p.head_dim);
  params.value = make_operand<Math>(a.value, p.kv_heads, p.value_dim);
  params.dout = make_operand<Math>(a.dout, p.heads, p.value_dim);
  params.tokens = make_additional<Math>(a.additional, p);
  params.lse = a.lse;
  params.delta = a.delta;
  params.dquery = a.dquery;
  params.dkey = a.dkey;
  params.dvalue = a.dvalue;
  params.drpb = a.drpb;
  params.drpb_parts = a.drpb_parts;
  params.scale = static_cast<float>(p.scale);
  return params;
}

template <class S>
const char* launch_bias(const BackwardArgs& a, BackwardParams params, Stream stream) {
  constexpr int kColumns = bias_streamed_tokens(S::kRowBytes, S::kRows);
  using Bias = KernelShape<typename S::Math, S::kFeatures, S::kWarps, S::kRowTiles, kColumns, 1>;
  static_assert(DrpbShared<Bias>::kBytes <= kSharedLimit);
  int columns[kAxes] = {a.query_tiles.key[0], a.query_tiles.key[1], a.query_tiles.key[2]};
  for (int axis = 0; volume(columns) > kColumns; axis = (axis + 1) % kAxes)
    if (columns[axis] > 1) columns[axis] /= 2;
  params.geometry = make_geometry<Side::kQueries>(a.problem, a.query_tiles.query, columns, a.offsets, a.rpb);
  return launch(fused_backward_drpb_kernel<Bias>, int64_t{a.drpb_parts} * a.problem.heads, Bias::kThreads,
                DrpbShared<Bias>::kBytes, stream, params);
}

template <class S, bool kHasTokens>
const char* launch_backward_query(const BackwardArgs& a, BackwardParams params, Stream stream) {
  static_assert(BackwardQueryShared<S>::kBytes <= kSharedLimit);
  const Problem& p = a.problem;
  if (volume(a.query_tiles.key) != S::kColumns) return kBadTiles;
  params.geometry = make_geometry<Side::kQueries>(p, a.query_tiles.query, a.query_tiles.key, a.offsets, a.rpb);
  const char* error = launch(fused_backward_query_kernel<S, kHasTokens>, p.batch * p.heads * params.geometry.tiles,
                             S::kThreads, BackwardQueryShared<S>::kBytes, stream, params);
  return error == nullptr && a.drpb != nullptr ? launch_bias<S>(a, params, stream) : error;
}

template <class S>
const char* launch_backward_key(const BackwardArgs& a, BackwardParams params, Stream stream) {
  static_assert(BackwardKeyShared<S>::kBytes <= kSharedLimit);
  constexpr int kParts = S::kRowBytes > 256 ? S::kRowBytes / 256 : 1;
  const Problem& p = a.problem;
  if (volume(a.key_tiles.query) != S::kColumns) return kBadTiles;
  params.geometry = make_geometry<Side::kKeys>(p, a.key_tiles.key, a.key_tiles.query, a.offsets, a.rpb);
  return launch(fused_backward_key_kernel<S, kParts>, p.batch * p.kv_heads * params.geometry.tiles * kParts,
                S::kThreads, BackwardKeyShared<S>::kBytes, stream, params);
}

template <class Math>
const char* run_backward_query(const BackwardArgs& a, Stream stream) {
  const BackwardParams params = backward_params<Math>(a);
  const auto run = [&](auto has_tokens) {
    constexpr bool kHasTokens = decltype(has_tokens)::value;
    return with_shape<Math, Pass::kBackwardQueries, kHasTokens>(
        a.problem, a.query_tiles, a.query_tiles.query,
        [&](auto shape) { return launch_backward_query<decltype(shape), kHasTokens>(a, params, stream); });
  };
  return a.additional.tokens > 0 ? run(std::true_type{}) : run(std::false_type{});
}

template <class Math>
const char* run_backward_key(const BackwardArgs& a, Stream stream) {
  const BackwardParams params = backward_params<Math>(a);
  return with_shape<Math, Pass::kBackwardKeys, false>(a.problem, a.key_tiles, a.key_tiles.key, [&](auto shape) {
    return launch_backward_key<decltype(shape)>(a, params, stream);
  });
}

}  // namespace jax_na::cuda
