// SPDX-License-Identifier: Apache-2.0
#include "common/call/call.h"

namespace jax_na {
namespace {

template <class T>
T* array_of(const Call& call, Operand operand) {
  return static_cast<T*>(call.data[static_cast<int>(operand)]);
}

TokenArrays tokens_of(const Call& call) {
  return {array_of<void>(call, Operand::kTokenKey), array_of<void>(call, Operand::kTokenValue), call.tokens};
}

// What the arguments of all kernels have.
template <class Args>
Args common_args(const Call& call) {
  Args args{};
  args.problem = call.query.problem;
  args.dtype = call.query.dtype;
  args.is_exact = call.query.is_exact;
  args.offsets = array_of<const int32_t>(call, Operand::kOffsets);
  return args;
}

template <class Args>
Args attention_args(const Call& call) {
  Args args = common_args<Args>(call);
  args.query = array_of<void>(call, Operand::kQuery);
  args.key = array_of<void>(call, Operand::kKey);
  args.value = array_of<void>(call, Operand::kValue);
  args.lse = array_of<float>(call, Operand::kLse);
  args.rpb = array_of<float>(call, Operand::kRpb);
  args.key_mask = array_of<uint8_t>(call, Operand::kKeyMask);
  args.tokens = tokens_of(call);
  return args;
}

}  // namespace

UnfusedArgs unfused_args(const Call& call) {
  UnfusedArgs args = common_args<UnfusedArgs>(call);
  args.weights = array_of<void>(call, Operand::kWeights);
  args.x = array_of<void>(call, Operand::kX);
  args.y = array_of<void>(call, Operand::kY);
  return args;
}

ForwardArgs forward_args(const Call& call) {
  ForwardArgs args = attention_args<ForwardArgs>(call);
  args.out = array_of<void>(call, Operand::kOut);
  return args;
}

BackwardArgs backward_args(const Call& call) {
  BackwardArgs args = attention_args<BackwardArgs>(call);
  args.delta = array_of<float>(call, Operand::kDelta);
  args.dout = array_of<void>(call, Operand::kDout);
  args.dquery = array_of<void>(call, Operand::kDquery);
  args.dkey = array_of<void>(call, Operand::kDkey);
  args.dvalue = array_of<void>(call, Operand::kDvalue);
  args.drpb = array_of<float>(call, Operand::kDrpb);
  args.drpb_parts = call.drpb_parts;
  return args;
}

SoftmaxArgs softmax_args(const Call& call) {
  const Problem& p = call.query.problem;
  SoftmaxArgs args{};
  args.rows = p.batch * query_tokens(p) * p.heads;
  args.slots = slots(p);
  args.pitch = p.pitch;
  args.scale = static_cast<float>(p.scale);
  args.scores = array_of<float>(call, Operand::kScores);
  args.weights = array_of<float>(call, Operand::kWeights);
  args.lse = array_of<float>(call, Operand::kLse);
  return args;
}

}  // namespace jax_na
