// SPDX-License-Identifier: Apache-2.0
// One call of CUDA kernels as plain data, which tests/cuda_kernels.py fills in through ctypes: keep both alike.
// Each library has one source that includes this.
#pragma once

#include <stdint.h>

#include <string>

#include "cuda/host/run.h"

namespace jax_na::cuda {

// An array of the caller; the kernel must not touch one byte before or after it.
struct Buffer {
  void* data;
  int64_t bytes;
  const char* name;
  int32_t is_result;
  int32_t operand;  // Operand
};

struct HarnessCall {
  Problem problem;
  int32_t target, dtype, is_exact, drpb_parts, tokens;  // Target, DType
  uint32_t operands;                                    // those that are there
  uint32_t seed;                                        // of the executor's schedule
  const char* kernels;                                  // see common/call/choice.h
};

inline Query query_of(const HarnessCall& call) {
  return {call.problem, static_cast<DType>(call.dtype), call.is_exact != 0, call.operands};
}

// Runs the kernels on arrays in device memory, `data[i]` for `buffers[i]`. Empty, or why they did not run.
inline std::string launch(const HarnessCall& given, const Buffer* buffers, void* const* data, int count,
                          Stream stream) {
  Call call{};
  call.target = static_cast<Target>(given.target);
  call.query = query_of(given);
  call.tokens = given.tokens;
  call.drpb_parts = given.drpb_parts;
  for (int i = 0; i < count; ++i) call.data[buffers[i].operand] = data[i];
  const char* failure = nullptr;
  const std::string reason = run(call, given.kernels, stream, failure);
  return failure == nullptr ? reason : failure;
}

inline const CudaVariant* row_of(const HarnessCall& call, int pass, const char* name) {
  return find_row(kernels(), static_cast<Target>(call.target), static_cast<Pass>(pass), name);
}

}  // namespace jax_na::cuda

// Writes the tilings of a kernel for the call, as many as there is room for; returns how many there are.
extern "C" int jax_na_tilings(const jax_na::cuda::HarnessCall* call, int pass, const char* name,
                              jax_na::Tiling* tilings, int capacity) {
  using namespace jax_na;
  const Query query = cuda::query_of(*call);
  const cuda::CudaVariant& row = *cuda::row_of(*call, pass, name);
  Text text{};
  find_obstacle(row, query, text);
  if (!is_empty(text)) return 0;
  struct Found {
    Tiling* tilings;
    int capacity, count;
  } found{tilings, capacity, 0};
  const auto visit = [](void* context, const Tiling& tiling) {
    auto& f = *static_cast<Found*>(context);
    if (f.count < f.capacity) f.tilings[f.count] = tiling;
    ++f.count;
  };
  row.tilings(query, {visit, &found});
  return found.count;
}

// Writes why a kernel does not take the call, "" if it does.
extern "C" void jax_na_obstacle(const jax_na::cuda::HarnessCall* call, int pass, const char* name, char* text,
                                int size) {
  jax_na::Text obstacle{};
  find_obstacle(*jax_na::cuda::row_of(*call, pass, name), jax_na::cuda::query_of(*call), obstacle);
  snprintf(text, static_cast<size_t>(size), "%s", obstacle.at);
}
