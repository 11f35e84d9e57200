// SPDX-License-Identifier: Apache-2.0
// The kernels of CPUs as rows of a table, one table per instruction set.
#pragma once

#include "common/call/variant.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/parallel.h"

namespace jax_na {

constexpr int kLanes = 16;  // queries (or keys) of one tile, the same for every instruction set

struct CpuVariant : Variant {
  void (*run)(const void* args, const Parallel&);  // the arguments of its target
  int64_t (*scratch)(
      const Problem&);  // bytes of one worker; of the problem they depend on the axes, the tile, the dims
  double cost;          // time of one operation, relative to the tile kernels
};

struct Kernels {
  int width;  // float32 lanes of a register
  const CpuVariant* const* rows;
  int count;
};

inline namespace JAX_NA_ISA {

template <class Args, void (*kernel)(const Args&, const Parallel&)>
void run_kernel(const void* args, const Parallel& parallel) {
  kernel(*static_cast<const Args*>(args), parallel);
}

inline int64_t no_scratch(const Problem&) { return 0; }

// The problem of a query with the tile of a kernel.
inline Problem with_tile(const Query& query, const int (&tile)[kAxes]) {
  Problem problem = query.problem;
  for (int a = 0; a < kAxes; ++a) problem.tile[a] = tile[a];
  return problem;
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
