// SPDX-License-Identifier: Apache-2.0
// What a call consists of, as tables: the targets, their operands and results, and the shape and element type of each.
// Plain data; the handlers decode by it, and Python reads it through the binding.
#pragma once

#include <stdint.h>

#include "common/isa.h"

namespace jax_na {

enum class Target {
  kFusedForward,
  kFusedBackward,
  kGemmQk,
  kGemmAv,
  kGemmInverse,
  kNaiveQk,
  kNaiveAv,
  kNaiveInverse,
  kSoftmax
};
constexpr int kTargets = 9;
constexpr const char* kTargetNames[kTargets] = {"na_fused_forward", "na_fused_backward", "na_gemm_qk",
                                                "na_gemm_av",       "na_gemm_inverse",   "na_naive_qk",
                                                "na_naive_av",      "na_naive_inverse",  "na_softmax"};

// One kernel of a target. Some platforms do the backward in one pass, others in two.
enum class Pass { kForward, kBackward, kBackwardQuery, kBackwardKey, kQk, kAv, kInverse, kSoftmax };
constexpr int kPasses = 8;
constexpr const char* kPassNames[kPasses] = {"forward", "backward", "backward_query", "backward_key",
                                             "qk",      "av",       "inverse",        "softmax"};

// Every array of a call. A call passes those that it has in this order, first the operands, then the results; bit i of
// the attribute `operands` says whether operand i is there.
enum class Operand {
  kQuery,
  kKey,
  kValue,
  kWeights,
  kX,
  kY,
  kScores,
  kOffsets,
  kOut,
  kLse,
  kDelta,
  kDout,
  kRpb,
  kTokenKey,
  kTokenValue,
  kKeyMask,
  kDquery,
  kDkey,
  kDvalue,
  kDrpb,
  kScratch
};
constexpr int kOperands = 21;
constexpr const char* kOperandNames[kOperands] = {
    "query", "key", "value",     "weights",     "x",        "y",      "scores", "offsets", "out",  "lse",    "delta",
    "dout",  "rpb", "token_key", "token_value", "key_mask", "dquery", "dkey",   "dvalue",  "drpb", "scratch"};

using Operands = uint32_t;  // a set of them, one bit each

// A size that several arrays of a call have in common.
enum class Size {
  kNone,
  kBatch,
  kHeads,
  kKvHeads,
  kHeadDim,
  kValueDim,
  kPitch,
  kTokens,
  kParts,
  kBytes,
  kQueries,
  kKeys
};
constexpr const char* kSizeNames[] = {"",      "batch",  "heads", "kv_heads", "head_dim", "value_dim",
                                      "pitch", "tokens", "parts", "bytes",    "queries",  "keys"};

// Element types, relative to the one of the call.
enum class ElementRule { kInput, kAccumulator, kFloat32, kInt32, kByte };
constexpr const char* kElementNames[] = {"input", "accumulator", "float32", "int32", "uint8"};

// How the kernels of a platform differ in their arrays.
struct Platform {
  bool has_scratch;      // fused and GEMM targets have a result to work in
  bool sums_in_float32;  // sums over many tiles are kept in the memory of the result
  bool narrow_weights;   // GEMM kernels read weights in the type of the other operand, else in float32
};

struct Signature {
  Operands required, optional, results;  // the result drpb is there if the operand rpb is
};

// The parts of a shape: [batch..., tokens..., heads, features] without those that are kNone.
struct Layout {
  Size batch, tokens, heads, features;
};

inline namespace JAX_NA_ISA {

constexpr Operands bit(Operand operand) { return Operands{1} << static_cast<int>(operand); }
constexpr bool has(Operands set, Operand operand) { return (set & bit(operand)) != 0; }

constexpr bool is_naive(Target target) { return target >= Target::kNaiveQk && target <= Target::kNaiveInverse; }
constexpr bool is_gemm(Target target) { return target >= Target::kGemmQk && target <= Target::kGemmInverse; }
constexpr bool is_fused(Target target) { return target <= Target::kFusedBackward; }

constexpr Signature array_signature(Target target) {
  constexpr Operands kInputs =
      bit(Operand::kQuery) | bit(Operand::kKey) | bit(Operand::kValue) | bit(Operand::kOffsets);
  constexpr Operands kOptional =
      bit(Operand::kRpb) | bit(Operand::kTokenKey) | bit(Operand::kTokenValue) | bit(Operand::kKeyMask);
  constexpr Operands kX = bit(Operand::kX), kY = bit(Operand::kY), kWeights = bit(Operand::kWeights);
  switch (target) {
    case Target::kFusedForward:
      return {kInputs, kOptional, bit(Operand::kOut) | bit(Operand::kLse)};
    case Target::kFusedBackward:
      return {kInputs | bit(Operand::kLse) | bit(Operand::kDelta) | bit(Operand::kDout), kOptional,
              bit(Operand::kDquery) | bit(Operand::kDkey) | bit(Operand::kDvalue) | bit(Operand::kDrpb)};
    case Target::kGemmQk:
    case Target::kNaiveQk:
      return {kX | kY | bit(Operand::kOffsets), 0, kWeights};
    case Target::kGemmAv:
    case Target::kNaiveAv:
      return {kWeights | kY | bit(Operand::kOffsets), 0, kX};
    case Target::kGemmInverse:
    case Target::kNaiveInverse:
      return {kWeights | kX | bit(Operand::kOffsets), 0, kY};
    default:
      return {bit(Operand::kScores), 0, kWeights | bit(Operand::kLse)};
  }
}

constexpr Signature signature(const Platform& platform, Target target) {
  Signature found = array_signature(target);
  if (platform.has_scratch && (is_fused(target) || is_gemm(target))) found.results |= bit(Operand::kScratch);
  return found;
}

// Of the offsets [rank, 2], the table rpb [heads, 2 w - 1...] and its gradients drpb [parts, heads, 2 w - 1...] this is
// only what comes before the extents that the window gives.
constexpr Layout layout(Operand operand) {
  switch (operand) {
    case Operand::kQuery:
    case Operand::kDquery:
      return {Size::kBatch, Size::kQueries, Size::kHeads, Size::kHeadDim};
    case Operand::kKey:
    case Operand::kDkey:
      return {Size::kBatch, Size::kKeys, Size::kKvHeads, Size::kHeadDim};
    case Operand::kValue:
    case Operand::kDvalue:
    case Operand::kY:
      return {Size::kBatch, Size::kKeys, Size::kKvHeads, Size::kValueDim};
    case Operand::kX:
    case Operand::kOut:
    case Operand::kDout:
      return {Size::kBatch, Size::kQueries, Size::kHeads, Size::kValueDim};
    case Operand::kWeights:
    case Operand::kScores:
      return {Size::kBatch, Size::kQueries, Size::kHeads, Size::kPitch};
    case Operand::kLse:
    case Operand::kDelta:
      return {Size::kBatch, Size::kQueries, Size::kHeads, Size::kNone};
    case Operand::kTokenKey:
      return {Size::kBatch, Size::kTokens, Size::kKvHeads, Size::kHeadDim};
    case Operand::kTokenValue:
      return {Size::kBatch, Size::kTokens, Size::kKvHeads, Size::kValueDim};
    case Operand::kKeyMask:
      return {Size::kBatch, Size::kKeys, Size::kNone, Size::kNone};
    case Operand::kRpb:
      return {Size::kNone, Size::kNone, Size::kHeads, Size::kNone};
    case Operand::kDrpb:
      return {Size::kNone, Size::kParts, Size::kHeads, Size::kNone};
    case Operand::kScratch:
      return {Size::kNone, Size::kBytes, Size::kNone, Size::kNone};
    default:
      return {Size::kNone, Size::kNone, Size::kNone, Size::kNone};
  }
}

constexpr ElementRule element(const Platform& platform, Target target, Operand operand) {
  const ElementRule sums = platform.sums_in_float32 ? ElementRule::kFloat32 : ElementRule::kInput;
  switch (operand) {
    case Operand::kOffsets:
      return ElementRule::kInt32;
    case Operand::kKeyMask:
    case Operand::kScratch:
      return ElementRule::kByte;
    case Operand::kScores:
    case Operand::kLse:
    case Operand::kDelta:
    case Operand::kRpb:
    case Operand::kDrpb:
      return ElementRule::kFloat32;
    case Operand::kDkey:
    case Operand::kDvalue:
      return sums;
    case Operand::kY:
      return target == Target::kGemmInverse ? sums : ElementRule::kInput;
    case Operand::kWeights:
      if (is_naive(target)) return ElementRule::kAccumulator;
      return is_gemm(target) && target != Target::kGemmQk && platform.narrow_weights ? ElementRule::kInput
                                                                                     : ElementRule::kFloat32;
    default:
      return ElementRule::kInput;
  }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
