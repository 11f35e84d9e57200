// SPDX-License-Identifier: Apache-2.0
// The attributes of a call: every target on every platform takes exactly these.
#pragma once

#include <string>
#include <string_view>

#include "xla/ffi/api/ffi.h"

namespace jax_na {

namespace ffi = xla::ffi;

using Integers = ffi::Span<const int64_t>;

struct Attributes {
  Integers kernel_size, stride, dilation, is_causal, length;  // one value per axis; length is that of the whole grid
  double scale;                                               // of the scores; unused by the unfused operations
  int64_t is_exact;                                           // products of float32 values: exact, or as is fastest
  int64_t operands;                                           // bit i: operand i of common/call/operands.h is there
  std::string_view kernels;                                   // the kernels to choose from, see common/call/choice.h
};

inline ffi::Error invalid(const std::string& message) { return ffi::Error::InvalidArgument("jax_na: " + message); }

}  // namespace jax_na

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    jax_na::Attributes, ::xla::ffi::StructMember<jax_na::Integers>("kernel_size"),
    ::xla::ffi::StructMember<jax_na::Integers>("stride"), ::xla::ffi::StructMember<jax_na::Integers>("dilation"),
    ::xla::ffi::StructMember<jax_na::Integers>("is_causal"), ::xla::ffi::StructMember<jax_na::Integers>("length"),
    ::xla::ffi::StructMember<double>("scale"), ::xla::ffi::StructMember<int64_t>("is_exact"),
    ::xla::ffi::StructMember<int64_t>("operands"), ::xla::ffi::StructMember<std::string_view>("kernels"));
