// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels as rows of one table. No CUDA header is needed here.
//
// Every launcher enqueues its kernels on the stream and returns; it never waits, allocates or reads device memory.
// Result: null, or a static text of what went wrong. Results are written completely, whatever the sizes: with an empty
// batch drpb is zero. All pointers are to device memory. Where a window reaches beyond the keys present, results are
// NaN and nothing is read.
#pragma once

#include "common/call/args.h"
#include "common/call/choice.h"
#include "common/call/variant.h"
#include "cuda/host/stream.h"

namespace jax_na::cuda {

struct CudaVariant : Variant {
  const char* (*run)(const void* args, Stream);         // the arguments of its target
  void (*late_obstacle)(const void* args, Text& text);  // what only a call shows: the GPU, sizes, addresses
};

Table<CudaVariant> kernels();

}  // namespace jax_na::cuda
