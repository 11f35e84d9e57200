// SPDX-License-Identifier: Apache-2.0
#include "cuda/host/variants.h"

#include "cuda/fused/config.h"
#include "cuda/geometry/tile.cuh"

namespace jax_na::cuda {

void shapes_obstacle(const KernelSizes& shapes, Pass pass, const Tiles& tiles, Text& text) {
  const char* const stay = keys_stay(pass) ? "key" : "query";
  const char* const stream = keys_stay(pass) ? "query" : "key";
  const int (&rows)[kAxes] = keys_stay(pass) ? tiles.key : tiles.query;
  const int (&columns)[kAxes] = keys_stay(pass) ? tiles.query : tiles.key;
  for (const auto* tile : {&tiles.query, &tiles.key})
    if (!is_power_of_two(*tile)) {
      say(text, "it takes tiles with powers of two as extents, not %dx%dx%d", (*tile)[0], (*tile)[1], (*tile)[2]);
      return;
    }
  for (int i = 0; i < shapes.count; ++i)
    if (shapes.at[i].rows == volume(rows) && shapes.at[i].columns == volume(columns)) return;
  char known[96] = "";
  int length = 0;
  for (int i = 0; i < shapes.count; ++i) {
    const KernelSize& shape = shapes.at[i];
    const char* const comma = i > 0 ? ", " : "";
    length += snprintf(known + length, sizeof known - length, "%s%d and %d", comma, shape.rows, shape.columns);
  }
  say(text, "it takes a %s tile and a %s tile of %s tokens, not %d and %d", stay, stream, known, volume(rows),
      volume(columns));
}

void grid_obstacle(const Problem& p, Text& text) {
  const int64_t most = query_tokens(p) > key_tokens(p) ? query_tokens(p) : key_tokens(p);
  if (most > INT32_MAX)
    say(text, "it takes up to 2^31 - 1 tokens of a batch entry, not %lld; region_attention takes them part by part",
        static_cast<long long>(most));
}

void features_obstacle(const Problem& p, Text& text) {
  if (p.head_dim > kMostFeatures)
    say(text, "it takes up to %d features per head of query and key, not %d", kMostFeatures, p.head_dim);
  else if (p.value_dim > kMostFeatures)
    say(text, "it takes up to %d features per head of the value, not %d", kMostFeatures, p.value_dim);
}

void chunks_obstacle(const Problem& p, Text& text) {
  if (p.head_dim % 8 != 0 || p.value_dim % 8 != 0)
    say(text, "it takes a multiple of 8 features per head, not %d", p.head_dim % 8 != 0 ? p.head_dim : p.value_dim);
}

void alignment_obstacle(std::initializer_list<const void*> arrays, Text& text) {
  for (const void* data : arrays) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    if (address % 16 != 0)
      say(text, "it takes arrays aligned to 16 bytes, not %d beyond that", static_cast<int>(address % 16));
  }
}

void capability_obstacle(int capability, Text& text) {
  if (compute_capability() != capability)
    say(text, "it takes a GPU of compute capability %d.%d", capability / 10, capability % 10);
}

double product(std::initializer_list<int64_t> counts) {
  double result = 1;
  for (const int64_t count : counts) result *= static_cast<double>(count);
  return result;
}

void blocks_obstacle(double blocks, Text& text) {
  if (blocks > INT32_MAX)
    say(text,
        "it takes problems of up to 2^31 - 1 thread blocks, not %.0f; parts of the batch or of the heads take less",
        blocks);
}

int64_t row_tiles(const Problem& p, Pass pass, const Tiles& tiles) {
  return keys_stay(pass) ? tile_count(p, make_tiling<Side::kKeys>(p, tiles.key, tiles.query))
                         : tile_count(p, make_tiling<Side::kQueries>(p, tiles.query, tiles.key));
}

// A family of kernels has a line here and a line in the table; kernels of a pass are shown in the order of the table.
extern const CudaVariant kHopperForward;                                                  // sm90/variant.cc
extern const CudaVariant kHaloForward, kHaloQuery, kHaloKey;                              // halo/variants.cc
extern const CudaVariant kHaloForwardHopper, kHaloQueryHopper, kHaloKeyHopper;            // halo/variants.cc
extern const CudaVariant kPortableForward, kPortableBackwardQuery, kPortableBackwardKey;  // fused/variants.cc
extern const CudaVariant kGemmQk, kGemmAv, kGemmInverse;                                  // gemm/variants.cc
extern const CudaVariant kNaiveQk, kNaiveAv, kNaiveInverse;                               // naive/variants.cc

Table<CudaVariant> kernels() {
  static constexpr const CudaVariant* kRows[] = {&kHopperForward,         &kHaloForward, &kHaloForwardHopper,
                                                 &kPortableForward,       &kHaloQuery,   &kHaloQueryHopper,
                                                 &kPortableBackwardQuery, &kHaloKey,     &kHaloKeyHopper,
                                                 &kPortableBackwardKey,   &kGemmQk,      &kGemmAv,
                                                 &kGemmInverse,           &kNaiveQk,     &kNaiveAv,
                                                 &kNaiveInverse};
  return {kRows, static_cast<int>(sizeof kRows / sizeof *kRows)};
}

}  // namespace jax_na::cuda
