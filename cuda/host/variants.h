// SPDX-License-Identifier: Apache-2.0
// What the rows of tensor-core kernels have in common: which tiles belong to kernels with so many tokens, what a call
// must not exceed, and from an element type to the arithmetic of block/arithmetic.cuh.
#pragma once

#include <initializer_list>

#include "cuda/host/kernels.h"

namespace jax_na::cuda {

int compute_capability();  // of the current device, 90 for 9.0; host/device.cu

struct TF32;
struct ExactF32;
template <class Type>
struct HalfPrecision;
struct F16Type;
struct BF16Type;

// Calls run(tag) with the arithmetic for a type and precision; other types are an obstacle of the row.
template <class Math>
struct Tag {
  using type = Math;
};
template <class Args, class Run>
const char* with_arithmetic(const Args& args, const Run& run) {
  if (args.dtype == DType::kFloat16) return run(Tag<HalfPrecision<F16Type>>{});
  if (args.dtype == DType::kBFloat16) return run(Tag<HalfPrecision<BF16Type>>{});
  return args.is_exact ? run(Tag<ExactF32>{}) : run(Tag<TF32>{});
}

// A kernel by the sizes of its tiles.
struct KernelSize {
  int rows;       // tokens that stay
  int warp_rows;  // how many of them a warp has
  int columns;    // tokens streamed per step
};

constexpr int kMostShapes = 4;
struct KernelSizes {
  KernelSize at[kMostShapes];
  int count;
};

inline bool is_power_of_two(const int (&tile)[kAxes]) {
  for (const int extent : tile)
    if (extent < 1 || (extent & (extent - 1)) != 0) return false;
  return true;
}

constexpr bool keys_stay(Pass pass) { return pass == Pass::kBackwardKey || pass == Pass::kInverse; }

// Why no kernel of these shapes has these tiles.
void shapes_obstacle(const KernelSizes& shapes, Pass pass, const Tiles& tiles, Text& text);

// Calls body(tiles, shape) for all tiles of these shapes.
template <class Body>
void for_each_pair(const KernelSizes& shapes, Pass pass, int rank, const Body& body) {
  for (int i = 0; i < shapes.count; ++i) {
    const KernelSize& shape = shapes.at[i];
    for_each_tile(rank, shape.rows, [&](const int (&row_tile)[kAxes]) {
      for_each_tile(rank, shape.columns, [&](const int (&column_tile)[kAxes]) {
        Tiles tiles{};
        for (int a = 0; a < kAxes; ++a) {
          tiles.query[a] = keys_stay(pass) ? column_tile[a] : row_tile[a];
          tiles.key[a] = keys_stay(pass) ? row_tile[a] : column_tile[a];
        }
        body(tiles, shape);
      });
    });
  }
}

// More tokens than their indices, of 32 bits, can count: those of one batch entry.
void grid_obstacle(const Problem&, Text&);

// More features than the fused kernels have room for.
void features_obstacle(const Problem&, Text&);

// Rows of features that are no whole 16-byte chunks, of 2-byte types; arrays that do not begin with one.
void chunks_obstacle(const Problem&, Text&);
void alignment_obstacle(std::initializer_list<const void*> arrays, Text&);

// Another GPU than those of a compute capability, 90 for 9.0.
void capability_obstacle(int capability, Text&);

// An integer could overflow.
double product(std::initializer_list<int64_t> counts);

// More blocks than a launch has.
void blocks_obstacle(double blocks, Text&);

// Tiles of the rows of one head.
int64_t row_tiles(const Problem&, Pass, const Tiles&);

}  // namespace jax_na::cuda
