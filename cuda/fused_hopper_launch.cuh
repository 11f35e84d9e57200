// SPDX-License-Identifier: Apache-2.0
// From the arguments of a call to the forward kernel for compute capability 9.0: tensor maps are encoded here, by the
// host, and travel as parameters of the kernel, so that a CUDA graph keeps them.
#pragma once

#include "fused_hopper.cuh"
#include "fused_launch.cuh"
#include "hopper_rule.h"
#include "tensor_map.h"

namespace jax_na::cuda {

template <class Type>
const char* run_hopper_forward(const ForwardArgs&, Stream);

// The largest part of a tile that one copy can take whose tokens follow each other in the tile: whole inner axes.
inline Piece make_piece(const Problem& p, const int (&tile)[kAxes]) {
  Piece piece{};
  bool is_whole = true;
  for (int a = kAxes - 1; a >= 0 && is_whole; --a) {
    int extent = tile[a];
    while (extent * p.axis[a].dilation > kMostSpan) extent /= 2;
    piece.log2[a] = log2_of(extent);
    is_whole = extent == tile[a];
  }
  return piece;
}

// An array [batch, *tokens, heads, features], to be copied in boxes of `panel` features and a piece of the tokens.
inline const char* encode_operand(CopiedOperand& operand, const Problem& p, const void* data,
                                  const int (&tokens)[kAxes], int heads, int features, const Piece& piece, int panel,
                                  Swizzle swizzle) {
  operand.heads_are_an_axis = heads_are_an_axis(p);
  operand.features = features;
  TensorView v{};
  v.data = data;
  v.swizzle = swizzle;
  int axis = 0;
  const auto add = [&](uint64_t extent, uint64_t stride, int count, int step) {
    v.extent[axis] = extent;
    if (axis > 0) v.stride[axis - 1] = stride;
    v.count[axis] = static_cast<uint32_t>(count);
    v.step[axis] = static_cast<uint32_t>(step);
    ++axis;
  };
  uint64_t stride = uint64_t{2} * static_cast<uint64_t>(heads) * static_cast<uint64_t>(features);  // of tokens
  const uint64_t batch_stride = stride * tokens[0] * tokens[1] * tokens[2];
  if (operand.heads_are_an_axis) {
    add(features, 2, panel, 1);
    add(heads, uint64_t{2} * static_cast<uint64_t>(features), 1, 1);
  } else {
    add(uint64_t{1} * heads * features, 2, panel, 1);
  }
  for (int a = kAxes - 1; a >= 0; --a) {
    const bool is_batch = a == 0 && operand.heads_are_an_axis && p.batch > 1;  // then the axis has one token
    add(is_batch ? p.batch : tokens[a], stride, 1 << piece.log2[a], p.axis[a].dilation);
    stride *= tokens[a];
  }
  if (!operand.heads_are_an_axis) add(p.batch, batch_stride, 1, 1);
  return encode_tensor_map(operand.map, v);
}

template <class S>
const char* launch_hopper_forward(const ForwardArgs& a, Stream stream) {
  static_assert(HopperShared<S>::kBytes <= 227 << 10);
  const Problem& p = a.problem;
  const Tiles& tiles = a.hopper_tiles;
  if (!is_power_of_two(tiles.query) || !is_power_of_two(tiles.key) || volume(tiles.query) != S::kRows ||
      volume(tiles.key) != S::kColumns)
    return kBadTiles;
  if (p.batch == 0) return nullptr;  // no tensor map has an axis of length 0
  HopperForwardParams params{};
  params.geometry = make_geometry<Rows::kQueries>(p, tiles.query, tiles.key, a.offsets, nullptr);
  params.owned = make_owned_columns(params.geometry.tiling);
  params.query_piece = make_piece(p, tiles.query);
  params.key_piece = make_piece(p, tiles.key);
  params.heads = p.heads;
  params.out = a.out;
  params.lse = a.lse;
  const auto encode = [&](CopiedOperand& operand, const void* data, const int (&tokens)[kAxes], int heads, int features,
                          const Piece& piece) {
    return encode_operand(operand, p, data, tokens, heads, features, piece, S::kPanelFeatures, S::kSwizzle);
  };
  if (const char* error = encode(params.query, a.query, p.nq, p.heads, p.head_dim, params.query_piece)) return error;
  if (const char* error = encode(params.key, a.key, p.nk, p.kv_heads, p.head_dim, params.key_piece)) return error;
  if (const char* error = encode(params.value, a.value, p.nk, p.kv_heads, p.value_dim, params.key_piece)) return error;
  return launch(fused_hopper_forward_kernel<S>, p.batch * p.heads * params.geometry.tiles, S::kThreads,
                HopperShared<S>::kBytes, stream, params);
}

template <class Type>
const char* run_hopper_forward(const ForwardArgs& a, Stream stream) {
  const char* result = kTooWide;
  match<32, 64, 128, 256>(feature_bucket(a.problem.head_dim, a.problem.value_dim), [&](auto features) {
    result = launch_hopper_forward<HopperShape<Type, decltype(features)::value>>(a, stream);
  });
  return result;
}

}  // namespace jax_na::cuda
