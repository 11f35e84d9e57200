// SPDX-License-Identifier: Apache-2.0
// The rows of the halo kernels: of those that every GPU has the room for, and of those that compute capability 9.0 has.
#include "cuda/host/variants.h"

#include "cuda/halo/config.h"

namespace jax_na::cuda {

// One arithmetic each, in halo/forward.cu.
template <class Math>
const char* run_halo_forward(const ForwardArgs&, Stream);

namespace {

HaloLayout layout_of(const Query& query, const HaloSizes& sizes) {
  const Problem& p = query.problem;
  return halo_layout(p, sizes, feature_bucket(p.head_dim, p.value_dim), has(query.operands, Operand::kRpb));
}

void obstacle(const Query& query, Text& text) {
  const Problem& p = query.problem;
  const int most = max(p.head_dim, p.value_dim);
  if (most > kMostHaloFeatures)
    say(text, "it takes up to %d features per head, not %d", kMostHaloFeatures, most);
  else
    chunks_obstacle(p, text);
  const double rows = product({query_tokens(p), p.heads}), keys = product({key_tokens(p), p.kv_heads});
  if (rows > INT32_MAX || keys > INT32_MAX)
    say(text, "it takes up to 2^31 - 1 rows (tokens times heads) of a batch entry, not %.0f",
        rows > keys ? rows : keys);
}

// Why a tile of queries does not do; `sizes` only where it does.
void halo_obstacle(const Query& query, const int (&tile)[kAxes], int room, HaloSizes& sizes, Text& text) {
  if (!is_power_of_two(tile) || volume(tile) != kHaloRows) {
    say(text, "it takes a tile of %d queries with powers of two as extents, not %dx%dx%d", kHaloRows, tile[0], tile[1],
        tile[2]);
    return;
  }
  const Problem& p = query.problem;
  for (int a = 0; a < kAxes; ++a)
    if (most_seen(p.axis[a], tile[a]) > kLongestHalo) {
      say(text, "it takes windows of a tile of up to %d keys along an axis, not %d", kLongestHalo,
          most_seen(p.axis[a], tile[a]));
      return;
    }
  sizes = halo_sizes(p, tile);
  const double bytes = 2. * sizes.halo_tokens * halo_row_bytes(feature_bucket(p.head_dim, p.value_dim));
  if (bytes > room || layout_of(query, sizes).bytes > room)
    say(text, "it takes %d KB of shared memory for a block, too few for the %d keys and values that a tile sees",
        room >> 10, sizes.halo_tokens);
}

template <int kRoom>
void tile_obstacle(const Query& query, const Tiles& tiles, Text& text) {
  HaloSizes sizes;
  halo_obstacle(query, tiles.query, kRoom, sizes, text);
  const Problem& p = query.problem;
  if (is_empty(text)) blocks_obstacle(product({p.batch, row_tiles(p, Pass::kForward, tiles)}), text);
}

template <int kRoom>
void tilings(const Query& query, const TilingVisitor& visitor) {
  const int features = feature_bucket(query.problem.head_dim, query.problem.value_dim);
  for_each_tile(query.problem.rank, kHaloRows, [&](const int (&tile)[kAxes]) {
    Text text{};
    HaloSizes sizes;
    halo_obstacle(query, tile, kRoom, sizes, text);
    if (!is_empty(text)) return;
    Tiles tiles{{tile[0], tile[1], tile[2]}, {1, 1, 1}};
    const int scored = sizes.parts * sizes.columns;  // by a warp
    visitor.visit(visitor.context, {tiles, kHaloRows, kHaloRows / kHaloWarps, scored, features, 0});
  });
}

// A program that was compiled where it can have more room goes on to its next choice where it can not.
template <int kRoom>
void late_obstacle(const void* args, Text& text) {
  const auto& forward = *static_cast<const ForwardArgs*>(args);
  alignment_obstacle({forward.query, forward.key, forward.value, forward.out}, text);
  if (kRoom > kSharedLimit) capability_obstacle(90, text);
}

const char* run(const void* args, Stream stream) {
  const auto& forward = *static_cast<const ForwardArgs*>(args);
  return forward.dtype == DType::kFloat16 ? run_halo_forward<HalfPrecision<F16Type>>(forward, stream)
                                          : run_halo_forward<HalfPrecision<BF16Type>>(forward, stream);
}

template <int kRoom>
constexpr CudaVariant halo(const char* name, const char* capability) {
  return {{Target::kFusedForward, Pass::kForward, name, Form::kTile, bit(Operand::kRpb),
           type_bit(DType::kBFloat16) | type_bit(DType::kFloat16), obstacle, tile_obstacle<kRoom>, tilings<kRoom>,
           capability},
          run,
          late_obstacle<kRoom>};
}

}  // namespace

extern const CudaVariant kHaloForwardHopper, kHaloForward;
const CudaVariant kHaloForwardHopper = halo<kSharedLimitHopper>("halo_sm90", "9.0");
const CudaVariant kHaloForward = halo<kSharedLimit>("halo", nullptr);

}  // namespace jax_na::cuda
