// SPDX-License-Identifier: Apache-2.0
// The rows of the halo kernels: of those that every GPU has the room for, and of those that compute capability 9.0 has.
#include "cuda/host/variants.h"

#include "cuda/halo/config.h"

namespace jax_na::cuda {

// One arithmetic each, in halo/forward.cu, backward_query.cu and backward_key.cu.
template <class Math>
const char* run_halo_forward(const ForwardArgs&, Stream);
template <class Math>
const char* run_halo_query(const BackwardArgs&, Stream);
template <class Math>
const char* run_halo_key(const BackwardArgs&, Stream);

namespace {

HaloUse use_of(const Query& query, Pass pass) {
  return {pass, has(query.operands, Operand::kRpb), has(query.operands, Operand::kKeyMask)};
}

template <Pass pass>
void obstacle(const Query& query, Text& text) {
  const Problem& p = query.problem;
  const int most = max(p.head_dim, p.value_dim);
  if (most > most_halo_features(pass))
    say(text, "it takes up to %d features per head, not %d", most_halo_features(pass), most);
  else
    chunks_obstacle(p, text);
  const double rows = product({query_tokens(p), p.heads}), keys = product({key_tokens(p), p.kv_heads});
  if (rows > INT32_MAX || keys > INT32_MAX)
    say(text, "it takes up to 2^31 - 1 rows (tokens times heads) of a batch entry, not %.0f",
        rows > keys ? rows : keys);
}

// Why a tile of rows does not do; `sizes` only where it does.
void halo_obstacle(const Query& query, Pass pass, const int (&tile)[kAxes], int room, HaloSizes& sizes, Text& text) {
  const char* const rows = keys_stay(pass) ? "keys" : "queries";
  const char* const columns = keys_stay(pass) ? "queries" : "keys";
  if (!is_power_of_two(tile) || volume(tile) != kHaloRows) {
    say(text, "it takes a tile of %d %s with powers of two as extents, not %dx%dx%d", kHaloRows, rows, tile[0], tile[1],
        tile[2]);
    return;
  }
  const Problem& p = query.problem;
  const HaloUse use = use_of(query, pass);
  for (int a = 0; a < kAxes; ++a) {
    // Keys first: queries are as many or more, and are counted one by one.
    const int keys = most_keys(p.axis[a], tile[a]), most = keys > kLongestHalo ? keys : most_seen(p, pass, a, tile[a]);
    if (most <= kLongestHalo) continue;
    say(text, "it takes windows of a tile of up to %d %s along an axis, not %d", kLongestHalo, columns, most);
    return;
  }
  sizes = halo_sizes(p, use, tile);
  const double halos = 2. * sizes.halo_tokens * halo_row_bytes(feature_bucket(p.head_dim, p.value_dim));
  const double tables = adds_bias(use) ? halo_table_bytes(p) : 0.;
  if (halos + tables > room || halo_layout(p, sizes, use).bytes > room)
    say(text, "it takes %d KB of shared memory for a block, too few for the %d %s that a tile sees", room >> 10,
        sizes.halo_tokens, columns);
}

template <Pass pass, int kRoom>
void tile_obstacle(const Query& query, const Tiles& tiles, Text& text) {
  HaloSizes sizes;
  halo_obstacle(query, pass, tiles.query, kRoom, sizes, text);
  const int (&tile)[kAxes] = tiles.query;  // of rows: there is no other
  const Tiles rows{{tile[0], tile[1], tile[2]}, {tile[0], tile[1], tile[2]}};
  if (is_empty(text)) blocks_obstacle(product({query.problem.batch, row_tiles(query.problem, pass, rows)}), text);
}

template <Pass pass, int kRoom>
void tilings(const Query& query, const TilingVisitor& visitor) {
  const int features = feature_bucket(query.problem.head_dim, query.problem.value_dim);
  for_each_tile(query.problem.rank, kHaloRows, [&](const int (&tile)[kAxes]) {
    Text text{};
    HaloSizes sizes;
    halo_obstacle(query, pass, tile, kRoom, sizes, text);
    if (!is_empty(text)) return;
    const Tiles tiles{{tile[0], tile[1], tile[2]}, {1, 1, 1}};
    const int scored = ceil_div(sizes.inside, sizes.columns) * sizes.columns;  // by a warp
    visitor.visit(visitor.context, {tiles, kHaloRows, kHaloRows / kHaloWarps, scored, features, 0});
  });
}

// A program that was compiled where it can have more room goes on to its next choice where it can not.
template <int kRoom>
void room_obstacle(Text& text) {
  if (kRoom > kSharedLimit) capability_obstacle(90, text);
}

template <int kRoom>
void late_forward_obstacle(const void* args, Text& text) {
  const auto& forward = *static_cast<const ForwardArgs*>(args);
  alignment_obstacle({forward.query, forward.key, forward.value, forward.out}, text);
  room_obstacle<kRoom>(text);
}

template <int kRoom>
void late_backward_obstacle(const void* args, Text& text) {
  const auto& backward = *static_cast<const BackwardArgs*>(args);
  alignment_obstacle(
      {backward.query, backward.key, backward.value, backward.dout, backward.dquery, backward.dkey, backward.dvalue},
      text);
  room_obstacle<kRoom>(text);
}

const char* run_forward(const void* args, Stream stream) {
  const auto& forward = *static_cast<const ForwardArgs*>(args);
  return forward.dtype == DType::kFloat16 ? run_halo_forward<HalfPrecision<F16Type>>(forward, stream)
                                          : run_halo_forward<HalfPrecision<BF16Type>>(forward, stream);
}
const char* run_query(const void* args, Stream stream) {
  const auto& backward = *static_cast<const BackwardArgs*>(args);
  return backward.dtype == DType::kFloat16 ? run_halo_query<HalfPrecision<F16Type>>(backward, stream)
                                           : run_halo_query<HalfPrecision<BF16Type>>(backward, stream);
}

const char* run_key(const void* args, Stream stream) {
  const auto& backward = *static_cast<const BackwardArgs*>(args);
  return backward.dtype == DType::kFloat16 ? run_halo_key<HalfPrecision<F16Type>>(backward, stream)
                                           : run_halo_key<HalfPrecision<BF16Type>>(backward, stream);
}

template <Pass pass, int kRoom>
constexpr CudaVariant halo(const char* name, const char* capability) {
  constexpr bool kIsForward = pass == Pass::kForward;
  return {{kIsForward ? Target::kFusedForward : Target::kFusedBackward, pass, name, Form::kTile,
           bit(Operand::kRpb) | bit(Operand::kKeyMask), type_bit(DType::kBFloat16) | type_bit(DType::kFloat16),
           obstacle<pass>, tile_obstacle<pass, kRoom>, tilings<pass, kRoom>, capability},
          kIsForward        ? run_forward
          : keys_stay(pass) ? run_key
                            : run_query,
          kIsForward ? late_forward_obstacle<kRoom> : late_backward_obstacle<kRoom>};
}

}  // namespace

extern const CudaVariant kHaloForward, kHaloForwardHopper, kHaloQuery, kHaloQueryHopper, kHaloKey, kHaloKeyHopper;
const CudaVariant kHaloForward = halo<Pass::kForward, kSharedLimit>("halo", nullptr);
const CudaVariant kHaloForwardHopper = halo<Pass::kForward, kSharedLimitHopper>("halo_sm90", "9.0");
const CudaVariant kHaloQuery = halo<Pass::kBackwardQuery, kSharedLimit>("halo", nullptr);
const CudaVariant kHaloQueryHopper = halo<Pass::kBackwardQuery, kSharedLimitHopper>("halo_sm90", "9.0");
const CudaVariant kHaloKey = halo<Pass::kBackwardKey, kSharedLimit>("halo", nullptr);
const CudaVariant kHaloKeyHopper = halo<Pass::kBackwardKey, kSharedLimitHopper>("halo_sm90", "9.0");

}  // namespace jax_na::cuda
