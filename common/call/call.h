// SPDX-License-Identifier: Apache-2.0
// A call with names instead of positions, and the arguments of kernels that follow from it.
#pragma once

#include "common/call/args.h"
#include "common/call/variant.h"

namespace jax_na {

struct Call {
  Target target;
  Query query;            // on GPUs its problem is complete but for the offsets
  void* data[kOperands];  // null for arrays that the call does not have
  int64_t bytes[kOperands];
  int tokens;  // additional ones
  int drpb_parts;
};

UnfusedArgs unfused_args(const Call&);
ForwardArgs forward_args(const Call&);
BackwardArgs backward_args(const Call&);
SoftmaxArgs softmax_args(const Call&);

}  // namespace jax_na
