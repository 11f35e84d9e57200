// SPDX-License-Identifier: Apache-2.0
#include "common/call/decode.h"

#include "common/call/sizes.h"

namespace jax_na {
namespace {

std::string number(int64_t value) { return std::to_string(value); }

const char* name_of(Operand operand) { return kOperandNames[static_cast<int>(operand)]; }

ffi::DataType data_type(ElementRule element, DType dtype) {
  constexpr ffi::DataType kTypes[kDTypes] = {ffi::F32, ffi::BF16, ffi::F16, ffi::F64};
  switch (element) {
    case ElementRule::kFloat32:
      return ffi::F32;
    case ElementRule::kInt32:
      return ffi::S32;
    case ElementRule::kByte:
      return ffi::U8;
    case ElementRule::kAccumulator:
      return dtype == DType::kFloat64 ? ffi::F64 : ffi::F32;
    default:
      return kTypes[static_cast<int>(dtype)];
  }
}

std::string type_name(ffi::DataType type) {
  for (int i = 0; i < kDTypes; ++i)
    if (data_type(ElementRule::kInput, static_cast<DType>(i)) == type) return kDTypeNames[i];
  if (type == ffi::S32) return "int32";
  return type == ffi::U8 ? "uint8" : "another type";
}

class Decoder {
 public:
  Decoder(const Platform& platform, const Attributes& attributes, Call& call)
      : platform_(platform), attributes_(attributes), call_(call), problem_(call.query.problem) {}

  ffi::Error window();
  ffi::Error presence(size_t operand_count, size_t result_count);
  ffi::Error learn_type(Operand operand, ffi::DataType type);
  ffi::Error array(Sizes& sizes, Operand operand, ffi::AnyBuffer buffer);
  ffi::Error finish(const Sizes& sizes);
  Operands operands() const { return call_.query.operands; }
  Operands results() const { return results_; }

 private:
  ffi::Error refused(const std::string& message) const { return refuse(call_.target, message); }
  ffi::Error axis(int index);
  ffi::Error element_type(Operand operand, ffi::DataType type) const;

  const Platform& platform_;
  const Attributes& attributes_;
  Call& call_;
  Problem& problem_;
  Operands results_ = 0;
  bool has_type_ = false;
};

ffi::Error Decoder::axis(int index) {
  const int64_t length = attributes_.length[index], kernel_size = attributes_.kernel_size[index];
  const int64_t stride = attributes_.stride[index], dilation = attributes_.dilation[index];
  const auto wrong = [&](const std::string& law) {
    return refused("axis " + number(index) + " has kernel_size " + number(kernel_size) + ", stride " + number(stride) +
                   ", dilation " + number(dilation) + " and length " + number(length) + "; " + law);
  };
  if (length < 1 || length > kLongestAxis) return wrong("legal lengths are 1 to " + number(kLongestAxis));
  if (kernel_size < 1 || dilation < 1 || kernel_size > length / dilation)
    return wrong("both sizes must be at least 1, and kernel_size * dilation at most the length");
  if (stride < 1 || stride > kernel_size) return wrong("the stride must be from 1 to kernel_size");
  const int64_t is_causal = attributes_.is_causal[index];
  if (is_causal != 0 && is_causal != 1) return refused("is_causal must be 0 or 1, not " + number(is_causal));
  problem_.axis[kAxes - problem_.rank + index] = {static_cast<int>(length), static_cast<int>(kernel_size),
                                                  static_cast<int>(stride), static_cast<int>(dilation), is_causal == 1};
  return ffi::Error::Success();
}

// The geometry, without the arrays.
ffi::Error Decoder::window() {
  const size_t rank = attributes_.kernel_size.size();
  if (rank < 1 || rank > kAxes)
    return refused("kernel_size has " + number(rank) + " values; 1 to 3 axes are supported");
  for (const Integers& values : {attributes_.stride, attributes_.dilation, attributes_.is_causal, attributes_.length})
    if (values.size() != rank)
      return refused("kernel_size has " + number(rank) + " values, but another attribute has " + to_string(values));
  if (attributes_.is_exact != 0 && attributes_.is_exact != 1)
    return refused("is_exact must be 0 or 1, not " + number(attributes_.is_exact));
  problem_.rank = static_cast<int>(rank);
  problem_.scale = attributes_.scale;
  call_.query.is_exact = attributes_.is_exact == 1;
  for (int a = 0; a < kAxes; ++a) problem_.axis[a] = {1, 1, 1, 1, false};
  int64_t window = 1, table = 1, groups = 1;
  for (int i = 0; i < problem_.rank; ++i) {
    if (ffi::Error error = axis(i); error.failure()) return error;
    const Axis& found = problem_.axis[kAxes - problem_.rank + i];
    window *= found.kernel_size;
    table *= 2 * int64_t{found.kernel_size} - 1;
    groups *= found.dilation;
    if (window > INT_MAX || groups > INT_MAX || (has(call_.query.operands, Operand::kRpb) && table > INT_MAX))
      return refused("kernel_size " + to_string(attributes_.kernel_size) + " and dilation " +
                     to_string(attributes_.dilation) + ": a product of them is larger than 2^31 - 1");
  }
  return ffi::Error::Success();
}

// Which arrays the call has.
ffi::Error Decoder::presence(size_t operand_count, size_t result_count) {
  const Signature expected = signature(platform_, call_.target);
  const auto given = static_cast<uint64_t>(attributes_.operands);
  const uint64_t legal = expected.required | expected.optional;
  if ((given & expected.required) != expected.required || (given & ~legal) != 0)
    return refused("operands is " + number(attributes_.operands) + "; its bits must include " +
                   number(expected.required) + " and may include " + number(expected.optional));
  call_.query.operands = static_cast<Operands>(given);
  if (has(operands(), Operand::kTokenKey) != has(operands(), Operand::kTokenValue))
    return refused("operands is " + number(attributes_.operands) + ": token_key and token_value come together");
  results_ = expected.results;
  if (!has(call_.query.operands, Operand::kRpb)) results_ &= ~bit(Operand::kDrpb);
  const auto wanted = static_cast<size_t>(__builtin_popcountll(given));
  if (operand_count != wanted)
    return refused("there are " + number(operand_count) + " operands, but operands=" + number(attributes_.operands) +
                   " says " + number(wanted));
  if (result_count != static_cast<size_t>(__builtin_popcount(results_)))
    return refused("there are " + number(result_count) + " results, not " + number(__builtin_popcount(results_)));
  return ffi::Error::Success();
}

// The type of the call is that of the first array which has it.
ffi::Error Decoder::learn_type(Operand operand, ffi::DataType type) {
  if (has_type_ || element(platform_, call_.target, operand) != ElementRule::kInput) return ffi::Error::Success();
  for (int i = 0; i < kDTypes; ++i)
    if (type == data_type(ElementRule::kInput, static_cast<DType>(i))) {
      call_.query.dtype = static_cast<DType>(i);
      has_type_ = true;
      return ffi::Error::Success();
    }
  return refused(std::string(name_of(operand)) + " is of " + type_name(type) +
                 ", not of float32, bfloat16, float16 or float64");
}

ffi::Error Decoder::element_type(Operand operand, ffi::DataType type) const {
  const ffi::DataType wanted = data_type(element(platform_, call_.target, operand), call_.query.dtype);
  if (type == wanted) return ffi::Error::Success();
  return refused(std::string(name_of(operand)) + " is of " + type_name(type) + ", not of " + type_name(wanted));
}

ffi::Error Decoder::array(Sizes& sizes, Operand operand, ffi::AnyBuffer buffer) {
  if (ffi::Error error = element_type(operand, buffer.element_type()); error.failure()) return error;
  if (const std::string wrong = sizes.match(operand, buffer.dimensions()); !wrong.empty()) return refused(wrong);
  call_.data[static_cast<int>(operand)] = buffer.untyped_data();
  call_.bytes[static_cast<int>(operand)] = static_cast<int64_t>(buffer.size_bytes());
  return ffi::Error::Success();
}

// From the sizes to the problem, with what no array shows alone.
ffi::Error Decoder::finish(const Sizes& sizes) {
  Problem& p = problem_;
  p.batch = sizes.batch();
  p.heads = sizes.of(Size::kHeads, 1);
  p.kv_heads = sizes.of(Size::kKvHeads, p.heads);
  p.value_dim = sizes.of(Size::kValueDim, 0);
  p.head_dim = sizes.of(Size::kHeadDim, 0);
  p.pitch = sizes.of(Size::kPitch, 0);
  call_.tokens = sizes.of(Size::kTokens, 0);
  call_.drpb_parts = sizes.of(Size::kParts, 0);
  for (int a = 0; a < kAxes; ++a) {
    const int i = a - (kAxes - p.rank);
    p.nq[a] = i < 0 ? 1 : sizes.queries(i);
    p.nk[a] = i < 0 ? 1 : sizes.keys(i);
  }
  if (p.heads % p.kv_heads != 0)
    return refused("heads is " + number(p.heads) + ", which must be a multiple of kv_heads, " + number(p.kv_heads));
  const int64_t widest = int64_t{p.heads} * max(p.head_dim, p.value_dim);
  if (widest > INT_MAX)
    return refused("heads * features is " + number(widest) + ", legal are up to " + number(INT_MAX));
  return ffi::Error::Success();
}

// Calls body(operand, its index among those present) for each; stops at the first error.
template <class Body>
ffi::Error for_each_operand(Operands present, const Body& body) {
  size_t index = 0;
  for (int i = 0; i < kOperands; ++i) {
    if ((present >> i & 1) == 0) continue;
    if (ffi::Error error = body(static_cast<Operand>(i), index++); error.failure()) return error;
  }
  return ffi::Error::Success();
}

}  // namespace

ffi::Error refuse(Target target, const std::string& message) {
  return ffi::Error::InvalidArgument(std::string(kTargetNames[static_cast<int>(target)]) + ": " + message);
}

ffi::Error decode(const Platform& platform, Target target, const Attributes& attributes, const ffi::RemainingArgs& args,
                  const ffi::RemainingRets& rets, Call& call) {
  call.target = target;
  Decoder decoder(platform, attributes, call);
  if (ffi::Error error = decoder.presence(args.size(), rets.size()); error.failure()) return error;
  if (ffi::Error error = decoder.window(); error.failure()) return error;
  Sizes sizes(target, attributes);
  const auto operand = [&](size_t i) { return *args.get<ffi::AnyBuffer>(i); };
  const auto result = [&](size_t i) { return **rets.get<ffi::AnyBuffer>(i); };
  ffi::Error error = for_each_operand(
      decoder.operands(), [&](Operand name, size_t i) { return decoder.learn_type(name, operand(i).element_type()); });
  if (error.failure()) return error;
  error = for_each_operand(decoder.operands(),
                           [&](Operand name, size_t i) { return decoder.array(sizes, name, operand(i)); });
  if (error.failure()) return error;
  error = for_each_operand(decoder.results(),
                           [&](Operand name, size_t i) { return decoder.array(sizes, name, result(i)); });
  if (error.failure()) return error;
  return decoder.finish(sizes);
}

}  // namespace jax_na
