// SPDX-License-Identifier: Apache-2.0
// From the buffers and attributes of an XLA FFI call to a Problem: what every platform does alike. Python has checked
// everything already; this is the second line, for a foreign caller.
#pragma once

#include <limits.h>

#include <string>

#include "common/dtype.h"
#include "common/problem.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jax_na {

using Integers = ffi::Span<const int64_t>;

// The attributes of every target (the unfused operations ignore scale). What `tile` means is the platform's matter.
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

// [batch..., *spatial, heads, features]: the parts of one operand's shape.
struct Shape {
  int64_t batch = 1;
  int spatial[kAxes] = {1, 1, 1};
  int heads = 0, features = 0;
};

inline ffi::Error parse_shape(ffi::Span<const int64_t> dims, size_t rank, Shape& shape) {
  if (dims.size() < rank + 2) return invalid("operands need at least rank + 2 axes");
  const size_t leading = dims.size() - rank - 2;
  for (size_t i = leading; i < dims.size(); ++i)
    if (dims[i] > INT_MAX) return invalid("an axis is longer than 2^31 - 1");
  for (size_t i = 0; i < leading; ++i) shape.batch *= dims[i];
  for (size_t i = 0; i < rank; ++i) shape.spatial[kAxes - rank + i] = static_cast<int>(dims[leading + i]);
  shape.heads = static_cast<int>(dims[leading + rank]);
  shape.features = static_cast<int>(dims[leading + rank + 1]);
  return ffi::Error::Success();
}

inline bool decode_dtype(ffi::DataType type, DType& dtype) {
  if (type == ffi::F32) return dtype = DType::kFloat32, true;
  if (type == ffi::BF16) return dtype = DType::kBFloat16, true;
  if (type == ffi::F16) return dtype = DType::kFloat16, true;
  if (type == ffi::F64) return dtype = DType::kFloat64, true;
  return false;
}

// The geometry of the call but for its offsets; `queries` and `keys` are shapes of any operand that has those tokens.
inline ffi::Error make_problem(const Attributes& g, const Shape& queries, const Shape& keys, Problem& p) {
  const size_t rank = g.kernel_size.size();
  if (rank < 1 || rank > kAxes) return invalid("1 to 3 axes are supported");
  for (const Integers& values : {g.stride, g.dilation, g.is_causal, g.length})
    if (values.size() != rank) return invalid("the attributes differ in their number of axes");
  if (queries.batch != keys.batch) return invalid("queries and keys differ in their batch axes");
  if (keys.heads < 1 || queries.heads % keys.heads != 0) return invalid("heads must be a multiple of kv_heads");
  p = Problem{};
  p.batch = queries.batch;
  p.rank = static_cast<int>(rank);
  p.heads = queries.heads;
  p.kv_heads = keys.heads;
  for (int a = 0; a < kAxes; ++a) {
    const int i = a - (kAxes - p.rank);
    p.axis[a] = i < 0 ? Axis{1, 1, 1, 1, false}
                      : Axis{static_cast<int>(g.length[i]), static_cast<int>(g.kernel_size[i]),
                             static_cast<int>(g.stride[i]), static_cast<int>(g.dilation[i]), g.is_causal[i] != 0};
    p.nq[a] = queries.spatial[a];
    p.nk[a] = keys.spatial[a];
    const Axis& axis = p.axis[a];
    if (axis.kernel_size < 1 || axis.stride < 1 || axis.dilation < 1 || axis.stride > axis.kernel_size ||
        int64_t{axis.kernel_size} * axis.dilation > axis.length)
      return invalid("illegal window on axis " + std::to_string(i));
  }
  return ffi::Error::Success();
}

inline ffi::Error check_offsets(const ffi::Buffer<ffi::S32>& offsets, size_t rank) {
  return offsets.element_count() == 2 * rank ? ffi::Error::Success() : invalid("offsets must be [rank, 2]");
}

// Operands query, key, value, offsets: what forward and backward share.
inline ffi::Error decode_attention(const Attributes& attributes, const ffi::RemainingArgs& args, Problem& p,
                                   DType& dtype) {
  const size_t rank = attributes.kernel_size.size();
  const auto query = args.get<ffi::AnyBuffer>(0), key = args.get<ffi::AnyBuffer>(1),
             value = args.get<ffi::AnyBuffer>(2);
  const auto offsets = args.get<ffi::Buffer<ffi::S32>>(3);
  if (!query || !key || !value || !offsets) return invalid("expected operands query, key, value, offsets");
  Shape q, k, v;
  if (ffi::Error error = parse_shape(query->dimensions(), rank, q); error.failure()) return error;
  if (ffi::Error error = parse_shape(key->dimensions(), rank, k); error.failure()) return error;
  if (ffi::Error error = parse_shape(value->dimensions(), rank, v); error.failure()) return error;
  if (ffi::Error error = make_problem(attributes, q, k, p); error.failure()) return error;
  if (ffi::Error error = check_offsets(*offsets, rank); error.failure()) return error;
  p.head_dim = q.features;
  p.value_dim = v.features;
  p.scale = attributes.scale;
  if (!decode_dtype(query->element_type(), dtype) || dtype == DType::kFloat64)
    return invalid("the fused kernels take float32, bfloat16 and float16");
  return ffi::Error::Success();
}

// The three arrays of an unfused operation; their kernels share one argument struct.
struct UnfusedArrays {
  Shape x, y;
  int pitch;
  DType dtype;
  void *weights, *x_data, *y_data;
};

// Operand order: qk (x, y, offsets) -> weights; av (weights, y, offsets) -> x; inverse (weights, x, offsets) -> y.
inline ffi::Error decode_unfused(Unfused operation, size_t rank, ffi::AnyBuffer first, ffi::AnyBuffer second,
                                 ffi::AnyBuffer result, UnfusedArrays& arrays) {
  const bool makes_weights = operation == Unfused::kQk, makes_x = operation == Unfused::kAv;
  const ffi::AnyBuffer weights = makes_weights ? result : first;
  const ffi::AnyBuffer x = makes_weights ? first : makes_x ? result : second;
  const ffi::AnyBuffer y = makes_weights || makes_x ? second : result;
  Shape w;
  if (ffi::Error error = parse_shape(weights.dimensions(), rank, w); error.failure()) return error;
  if (ffi::Error error = parse_shape(x.dimensions(), rank, arrays.x); error.failure()) return error;
  if (ffi::Error error = parse_shape(y.dimensions(), rank, arrays.y); error.failure()) return error;
  if (!decode_dtype(second.element_type(), arrays.dtype)) return invalid("unsupported element type");
  arrays.pitch = w.features;
  arrays.weights = weights.untyped_data();
  arrays.x_data = x.untyped_data();
  arrays.y_data = y.untyped_data();
  return ffi::Error::Success();
}

// The problem of an unfused operation.
inline ffi::Error make_problem(const Attributes& attributes, const UnfusedArrays& arrays, Problem& p) {
  if (ffi::Error error = make_problem(attributes, arrays.x, arrays.y, p); error.failure()) return error;
  p.value_dim = arrays.x.features;
  p.pitch = arrays.pitch;
  return p.pitch < slots(p) ? invalid("rows of weights are shorter than the window") : ffi::Error::Success();
}

}  // namespace jax_na
