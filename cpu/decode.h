// SPDX-License-Identifier: Apache-2.0
// From the buffers and attributes of an XLA FFI call to a Problem, and the checks on the way.
#pragma once

#include <string>

#include "instruction_set.h"
#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jax_na {

using Integers = ffi::Span<const int64_t>;

// The attributes of every target (the unfused operations ignore scale).
struct Attributes {
  Integers kernel_size, stride, dilation, is_causal, length, tile;
  double scale;
};

}  // namespace jax_na

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(jax_na::Attributes, ffi::StructMember<jax_na::Integers>("kernel_size"),
                                      ffi::StructMember<jax_na::Integers>("stride"),
                                      ffi::StructMember<jax_na::Integers>("dilation"),
                                      ffi::StructMember<jax_na::Integers>("is_causal"),
                                      ffi::StructMember<jax_na::Integers>("length"),
                                      ffi::StructMember<jax_na::Integers>("tile"), ffi::StructMember<double>("scale"));

namespace jax_na {

inline ffi::Error invalid(const std::string& message) { return ffi::Error::InvalidArgument("jax_na: " + message); }

inline std::string interval(int64_t first, int64_t count) {
  return "[" + std::to_string(first) + ", " + std::to_string(first + count) + ")";
}

// [batch..., *spatial, heads, features]: the parts of one operand's shape.
struct Shape {
  int64_t batch = 1;
  int spatial[kAxes] = {1, 1, 1};
  int heads = 0, features = 0;
};

inline bool parse_shape(ffi::Span<const int64_t> dims, size_t rank, Shape& shape) {
  if (dims.size() < rank + 2) return false;
  const size_t leading = dims.size() - rank - 2;
  for (size_t i = 0; i < leading; ++i) shape.batch *= dims[i];
  for (size_t i = 0; i < rank; ++i) shape.spatial[kAxes - rank + i] = static_cast<int>(dims[leading + i]);
  shape.heads = static_cast<int>(dims[leading + rank]);
  shape.features = static_cast<int>(dims[leading + rank + 1]);
  return true;
}

// The geometry of the call; `queries` and `keys` are shapes of any operand that has those tokens.
inline ffi::Error make_problem(const Attributes& g, const Shape& queries, const Shape& keys, const int32_t* offsets,
                               Problem& p) {
  const size_t rank = g.kernel_size.size();
  p = Problem{};
  p.batch = queries.batch;
  p.heads = queries.heads;
  p.kv_heads = keys.heads;
  if (queries.batch != keys.batch) return invalid("queries and keys differ in their batch axes");
  if (p.kv_heads < 1 || p.heads % p.kv_heads != 0) return invalid("heads must be a multiple of kv_heads");
  for (int a = 0; a < kAxes; ++a) {
    const int i = a - (kAxes - static_cast<int>(rank));
    p.axis[a] = i < 0 ? Axis{1, 1, 1, 1, false}
                      : Axis{static_cast<int>(g.length[i]), static_cast<int>(g.kernel_size[i]),
                             static_cast<int>(g.stride[i]), static_cast<int>(g.dilation[i]), g.is_causal[i] != 0};
    p.tile[a] = i < 0 ? 1 : static_cast<int>(g.tile[i]);
    p.q0[a] = i < 0 ? 0 : offsets[2 * i];
    p.k0[a] = i < 0 ? 0 : offsets[2 * i + 1];
    p.nq[a] = queries.spatial[a];
    p.nk[a] = keys.spatial[a];
    const Axis& axis = p.axis[a];
    if (axis.kernel_size < 1 || axis.stride < 1 || axis.dilation < 1 || axis.stride > axis.kernel_size ||
        int64_t{axis.kernel_size} * axis.dilation > axis.length)
      return invalid("illegal window on axis " + std::to_string(i));
    if (!windows_present(p, a))
      return invalid("on axis " + std::to_string(i) + " the windows of the queries " + interval(p.q0[a], p.nq[a]) +
                     " reach beyond the keys " + interval(p.k0[a], p.nk[a]) + " of an axis of length " +
                     std::to_string(axis.length));
  }
  return ffi::Error::Success();
}

inline bool tile_is_valid(const Problem& p, Pass pass) {
  if (p.tile[0] < 1 || p.tile[1] < 1 || p.tile[2] < 0) return false;
  return p.tile[2] == 0 ? best_kernels().rows_fit(p, pass) : p.tile[0] * p.tile[1] * p.tile[2] == kLanes;
}
constexpr char kBadTile[] = "the product of tile must be 16, or its last size 0 where the row kernels fit";

inline bool decode_dtype(ffi::DataType type, DType& dtype) {
  if (type == ffi::F32) return dtype = DType::kFloat32, true;
  if (type == ffi::BF16) return dtype = DType::kBFloat16, true;
  if (type == ffi::F16) return dtype = DType::kFloat16, true;
  if (type == ffi::F64) return dtype = DType::kFloat64, true;
  return false;
}

// Operands q, k, v, offsets: what forward and backward share.
inline ffi::Error decode_attention(const Attributes& attributes, Pass pass, const ffi::RemainingArgs& args, Problem& p,
                                   DType& dtype) {
  const size_t rank = attributes.kernel_size.size();
  Shape q, k, v;
  const auto query = args.get<ffi::AnyBuffer>(0), key = args.get<ffi::AnyBuffer>(1),
             value = args.get<ffi::AnyBuffer>(2);
  const auto offsets = args.get<ffi::Buffer<ffi::S32>>(3);
  if (!query || !key || !value || !offsets) return invalid("expected operands query, key, value, offsets");
  if (!parse_shape(query->dimensions(), rank, q) || !parse_shape(key->dimensions(), rank, k) ||
      !parse_shape(value->dimensions(), rank, v))
    return invalid("operands need at least rank + 2 axes");
  if (ffi::Error error = make_problem(attributes, q, k, offsets->typed_data(), p); error.failure()) return error;
  p.head_dim = q.features;
  p.value_dim = v.features;
  p.scale = attributes.scale;
  if (!decode_dtype(query->element_type(), dtype) || dtype == DType::kFloat64)
    return invalid("the fused kernels take float32, bfloat16 and float16");
  if (!tile_is_valid(p, pass)) return invalid(kBadTile);
  return ffi::Error::Success();
}

}  // namespace jax_na
