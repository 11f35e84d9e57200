// SPDX-License-Identifier: Apache-2.0
// One call of a CUDA kernel as plain data, which tests/cuda_kernels.py fills in through ctypes: keep both alike.
// Each library has one source that includes this.
#pragma once

#include <stdint.h>

#include "cuda/gemm/config.h"
#include "cuda/host/kernels.h"

namespace jax_na::cuda {

enum class Kernel : int32_t { kNaiveQk, kNaiveAv, kNaiveInverse, kForward, kBackward, kGemmQk, kGemmAv, kGemmInverse };

// An array of the caller; the kernel must not touch one byte before or after it.
struct Buffer {
  void* data;
  int64_t bytes;
  const char* name;
  int32_t is_result;
};

struct Call {
  Problem problem;
  Kernel kernel;
  int32_t dtype, precision, drpb_parts, additional_tokens;
  uint32_t seed;            // of the executor's schedule
  int32_t tiles[4][kAxes];  // query, key; portable, then Hopper; backward those of dQ, then of dK and dV
};

inline Tiles tiles_of(const Call& call, int first) {
  Tiles tiles{};
  for (int a = 0; a < kAxes; ++a) {
    tiles.query[a] = call.tiles[first][a];
    tiles.key[a] = call.tiles[first + 1][a];
  }
  return tiles;
}

// Runs the launcher on buffers in device memory: offsets, then operands, then results, in the order of the arguments.
inline const char* launch(const Call& call, void* const* buffer, Stream stream) {
  const auto dtype = static_cast<DType>(call.dtype);
  const auto precision = static_cast<Precision>(call.precision);
  const auto* offsets = static_cast<const int32_t*>(buffer[0]);
  if (call.kernel == Kernel::kForward) {
    ForwardArgs args{};
    args.problem = call.problem, args.dtype = dtype, args.precision = precision;
    args.tiles = tiles_of(call, 0), args.hopper_tiles = tiles_of(call, 2);
    args.offsets = offsets;
    args.query = buffer[1], args.key = buffer[2], args.value = buffer[3];
    args.rpb = static_cast<const float*>(buffer[4]);
    args.additional = {buffer[5], buffer[6], call.additional_tokens};
    args.out = buffer[7], args.lse = static_cast<float*>(buffer[8]);
    return fused_forward(args, stream);
  }
  if (call.kernel == Kernel::kBackward) {
    BackwardArgs args{};
    args.problem = call.problem, args.query_tiles = tiles_of(call, 0), args.key_tiles = tiles_of(call, 2);
    args.dtype = dtype, args.precision = precision, args.offsets = offsets;
    args.query = buffer[1], args.key = buffer[2], args.value = buffer[3];
    args.lse = static_cast<const float*>(buffer[4]), args.delta = static_cast<const float*>(buffer[5]);
    args.dout = buffer[6], args.rpb = static_cast<const float*>(buffer[7]);
    args.additional = {buffer[8], buffer[9], call.additional_tokens};
    args.dquery = buffer[10], args.dkey = buffer[11], args.dvalue = buffer[12];
    args.drpb = static_cast<float*>(buffer[13]), args.drpb_parts = call.drpb_parts;
    return fused_backward(args, stream);
  }
  const bool is_naive = call.kernel < Kernel::kForward;
  const auto operation = static_cast<Unfused>(static_cast<int>(call.kernel) -
                                              static_cast<int>(is_naive ? Kernel::kNaiveQk : Kernel::kGemmQk));
  GemmArgs args{};
  args.problem = call.problem, args.tiles = tiles_of(call, 0), args.dtype = dtype, args.precision = precision;
  args.offsets = offsets;
  void** const of[] = {&args.weights, &args.x, &args.y};  // two operands, then the result
  const int order[3][3] = {{1, 2, 0}, {0, 2, 1}, {0, 1, 2}};
  for (int i = 0; i < 3; ++i) *of[order[static_cast<int>(operation)][i]] = buffer[i + 1];
  if (!is_naive) return gemm(operation, args, stream);
  return operation == Unfused::kQk   ? naive_qk(args, stream)
         : operation == Unfused::kAv ? naive_av(args, stream)
                                     : naive_inverse(args, stream);
}

}  // namespace jax_na::cuda

// Slots of a row of weights that the GEMM kernel of the call has room for, 0 if there is no kernel.
extern "C" int jax_na_gemm_slots(const jax_na::cuda::Call* call, int element_bytes) {
  using namespace jax_na::cuda;
  const auto operation =
      static_cast<jax_na::Unfused>(static_cast<int>(call->kernel) - static_cast<int>(Kernel::kGemmQk));
  const Tiles tiles = tiles_of(*call, 0);
  const auto& rows = operation == jax_na::Unfused::kInverse ? tiles.key : tiles.query;
  const auto& columns = operation == jax_na::Unfused::kInverse ? tiles.query : tiles.key;
  const GemmShape shape = gemm_shape(operation, element_bytes, call->problem.value_dim, rows[0] * rows[1] * rows[2]);
  return make_staging(shape, call->problem, rows, columns).slots;
}

// Tokens that the fused kernel with so many rows streams per step, 0 if there is none.
extern "C" int jax_na_streamed_tokens(int pass, int element_bytes, int head_dim, int value_dim, int rows,
                                      int additional) {
  using namespace jax_na::cuda;
  const int row_bytes = feature_bucket(head_dim, value_dim) * element_bytes;
  const bool exists =
      row_bytes > 0 && has_shape(static_cast<Pass>(pass), row_bytes, element_bytes, rows, additional > 0);
  return exists ? streamed_tokens(static_cast<Pass>(pass), row_bytes, rows) : 0;
}

// The same of the forward kernel for compute capability 9.0.
extern "C" int jax_na_hopper_columns(int head_dim, int value_dim) {
  return jax_na::cuda::hopper_columns(jax_na::cuda::feature_bucket(head_dim, value_dim));
}
