// SPDX-License-Identifier: Apache-2.0
// The rows of the fused kernels that run on every GPU.
#include "cuda/host/variants.h"

#include "cuda/fused/config.h"
#include "cuda/geometry/strip.cuh"

namespace jax_na::cuda {

// One arithmetic each, in fused/forward.cu, backward_query.cu and backward_key.cu.
template <class Math>
const char* run_forward(const ForwardArgs&, Stream);
template <class Math>
const char* run_backward_query(const BackwardArgs&, Stream);
template <class Math>
const char* run_backward_key(const BackwardArgs&, Stream);

namespace {

int row_bytes_of(const Query& query) {
  return feature_bucket(query.problem.head_dim, query.problem.value_dim) * kDTypeBytes[static_cast<int>(query.dtype)];
}

KernelSizes shapes_of(Pass pass, const Query& query) {
  const int element_bytes = kDTypeBytes[static_cast<int>(query.dtype)];
  const int row_bytes = row_bytes_of(query);
  const bool is_extended = has(query.operands, Operand::kTokenKey) || has(query.operands, Operand::kKeyMask);
  KernelSizes shapes{};
  for (int rows = kSmallRows; row_bytes > 0 && rows <= kLargeRows; rows *= 2)
    if (has_shape(pass, row_bytes, element_bytes, rows, is_extended))
      shapes.at[shapes.count++] = {rows, rows == kLargeRows ? 32 : 16, streamed_tokens(pass, row_bytes, rows)};
  return shapes;
}

void obstacle(const Query& query, Text& text) {
  features_obstacle(query.problem, text);
  if (is_empty(text)) grid_obstacle(query.problem, text);
}

// More distances than the kernel of the queries has room for, with a bias.
template <Pass pass>
void distances_obstacle(const Query& query, const Tiles& tiles, Text& text) {
  if (pass != Pass::kBackwardQuery || !has(query.operands, Operand::kRpb)) return;
  const int most = most_distances(row_bytes_of(query), volume(tiles.query));
  const int number = distances(make_strip(make_tiling<Side::kQueries>(query.problem, tiles.query, tiles.key)));
  if (number > most)
    say(text,
        "it takes, with a bias, tiles with up to %d distances between %d neighbouring queries and the keys, not %d; "
        "tiles that are longer along the same axes have fewer",
        most, kStripRows, number);
}

template <Pass pass>
void tile_obstacle(const Query& query, const Tiles& tiles, Text& text) {
  shapes_obstacle(shapes_of(pass, query), pass, tiles, text);
  if (is_empty(text)) distances_obstacle<pass>(query, tiles, text);
  if (!is_empty(text)) return;
  const Problem& p = query.problem;
  const int row_bytes = row_bytes_of(query);
  const int parts = keys_stay(pass) ? key_parts(row_bytes) : 1, heads = keys_stay(pass) ? p.kv_heads : p.heads;
  blocks_obstacle(product({p.batch, heads, row_tiles(p, pass, tiles), parts}), text);
}

template <Pass pass>
void tilings(const Query& query, const TilingVisitor& visitor) {
  const int features = feature_bucket(query.problem.head_dim, query.problem.value_dim);
  for_each_pair(shapes_of(pass, query), pass, query.problem.rank, [&](const Tiles& tiles, const KernelSize& shape) {
    Text text{};
    distances_obstacle<pass>(query, tiles, text);
    if (!is_empty(text)) return;
    visitor.visit(visitor.context, {tiles, shape.rows, shape.warp_rows, shape.columns, features, 0});
  });
}

const char* run_forward_pass(const void* args, Stream stream) {
  const auto& forward = *static_cast<const ForwardArgs*>(args);
  return with_arithmetic(forward,
                         [&](auto math) { return run_forward<typename decltype(math)::type>(forward, stream); });
}
const char* run_query_pass(const void* args, Stream stream) {
  const auto& backward = *static_cast<const BackwardArgs*>(args);
  return with_arithmetic(
      backward, [&](auto math) { return run_backward_query<typename decltype(math)::type>(backward, stream); });
}
const char* run_key_pass(const void* args, Stream stream) {
  const auto& backward = *static_cast<const BackwardArgs*>(args);
  return with_arithmetic(backward,
                         [&](auto math) { return run_backward_key<typename decltype(math)::type>(backward, stream); });
}

template <Pass pass>
constexpr CudaVariant portable(Target target, const char* (*run)(const void*, Stream)) {
  constexpr Operands kTakes =
      bit(Operand::kRpb) | bit(Operand::kTokenKey) | bit(Operand::kTokenValue) | bit(Operand::kKeyMask);
  return {
      {target, pass, "portable", Form::kTilePair, kTakes, kHalfOrSingle, obstacle, tile_obstacle<pass>, tilings<pass>},
      run,
      nullptr};
}

}  // namespace

extern const CudaVariant kPortableForward, kPortableBackwardQuery, kPortableBackwardKey;
const CudaVariant kPortableForward = portable<Pass::kForward>(Target::kFusedForward, run_forward_pass);
const CudaVariant kPortableBackwardQuery = portable<Pass::kBackwardQuery>(Target::kFusedBackward, run_query_pass);
const CudaVariant kPortableBackwardKey = portable<Pass::kBackwardKey>(Target::kFusedBackward, run_key_pass);

}  // namespace jax_na::cuda
