// SPDX-License-Identifier: Apache-2.0
// The kernels of one instruction set. CMake compiles this source once for each, with JAX_NA_ISA as its name.
#include "cpu/rows/variants.h"
#include "cpu/single/variants.h"
#include "cpu/tiles/variants.h"

namespace jax_na {

extern const CpuVariant kNaiveQk, kNaiveAv, kNaiveInverse;

inline namespace JAX_NA_ISA {

// Those of a target in the order in which they are shown; one line for each kernel.
const CpuVariant* const kRows[] = {&kTileVariants[0], &kRowVariants[0], &kSingleVariant,  // fused forward
                                   &kTileVariants[1], &kRowVariants[1],                   // fused backward
                                   &kTileVariants[2], &kRowVariants[2],                   // qk
                                   &kTileVariants[3], &kRowVariants[3],                   // av
                                   &kTileVariants[4], &kRowVariants[4],                   // inverse
                                   &kNaiveQk,         &kNaiveAv,        &kNaiveInverse,  &kSoftmaxVariant};

extern const Kernels kKernels;
const Kernels kKernels = {kWidth, kRows, static_cast<int>(sizeof kRows / sizeof *kRows)};

}  // namespace JAX_NA_ISA
}  // namespace jax_na
