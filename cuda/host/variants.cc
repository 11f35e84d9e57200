// SPDX-License-Identifier: Apache-2.0
#include "cuda/host/variants.h"

namespace jax_na::cuda {

void shapes_obstacle(const KernelShapes& shapes, Pass pass, const Tiles& tiles, Text& text) {
  const char* const stay = keys_stay(pass) ? "key" : "query";
  const char* const stream = keys_stay(pass) ? "query" : "key";
  const int (&rows)[kAxes] = keys_stay(pass) ? tiles.key : tiles.query;
  const int (&columns)[kAxes] = keys_stay(pass) ? tiles.query : tiles.key;
  for (const auto* tile : {&tiles.query, &tiles.key})
    if (!is_power_of_two(*tile)) {
      say(text, "it takes tiles with powers of two as extents, not %dx%dx%d", (*tile)[0], (*tile)[1], (*tile)[2]);
      return;
    }
  char known[96] = "";
  int length = 0;
  for (int i = 0; i < shapes.count; ++i) {
    const KernelShape& shape = shapes.at[i];
    if (shape.rows == volume(rows) && shape.columns == volume(columns)) return;
    length +=
        snprintf(known + length, sizeof known - length, "%s%d and %d", i > 0 ? ", " : "", shape.rows, shape.columns);
  }
  say(text, "it takes a %s tile and a %s tile of %s tokens, not %d and %d", stay, stream, known, volume(rows),
      volume(columns));
}

void grid_obstacle(const Problem& p, Text& text) {
  const int64_t most = query_tokens(p) > key_tokens(p) ? query_tokens(p) : key_tokens(p);
  if (most > INT32_MAX) say(text, "it takes up to 2^31 - 1 tokens in an array, not %lld", static_cast<long long>(most));
}

// One line for each family; those of a target are shown in this order, pass after pass.
extern const CudaVariant kHopperForward;
extern const CudaVariant kPortableForward, kPortableBackwardQuery, kPortableBackwardKey;
extern const CudaVariant kGemmQk, kGemmAv, kGemmInverse;
extern const CudaVariant kNaiveQk, kNaiveAv, kNaiveInverse;

Table<CudaVariant> kernels() {
  static constexpr const CudaVariant* kRows[] = {
      &kHopperForward,  // sm90/variant.cc
      &kPortableForward,
      &kPortableBackwardQuery,
      &kPortableBackwardKey,  // fused/variants.cc
      &kGemmQk,
      &kGemmAv,
      &kGemmInverse,  // gemm/variants.cc
      &kNaiveQk,
      &kNaiveAv,
      &kNaiveInverse,  // naive/variants.cc
  };
  return {kRows, static_cast<int>(sizeof kRows / sizeof *kRows)};
}

}  // namespace jax_na::cuda
