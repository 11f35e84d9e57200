// SPDX-License-Identifier: Apache-2.0
#include "common/call/sizes.h"

namespace jax_na {

std::string to_string(Integers values) {
  std::string text;
  for (const int64_t value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
  return "[" + text + "]";
}

Sizes::Sizes(Target target, const Attributes& attributes)
    : target_(target), kernel_size_(attributes.kernel_size), length_(attributes.length) {
  for (const int64_t size : kernel_size_) slots_ *= size;
  for (int64_t& size : common_) size = -1;
  for (int64_t& tokens : queries_) tokens = -1;
  for (int64_t& tokens : keys_) tokens = -1;
}

int Sizes::of(Size size, int otherwise) const {
  const int64_t value = common_[static_cast<int>(size)];
  return value < 0 ? otherwise : static_cast<int>(value);
}

void Sizes::add_size(Size size, Extents& extents) {
  if (size == Size::kNone) return;
  Extent extent{&common_[static_cast<int>(size)], kSizeNames[static_cast<int>(size)], 1, INT_MAX};
  if (size == Size::kHeadDim || size == Size::kValueDim) extent.highest = kMostFeatures;
  if (size == Size::kPitch) extent.lowest = slots_;
  if (size == Size::kTokens || size == Size::kBytes) extent.lowest = 0;
  if (size == Size::kTokens) extent.highest = kLongestAxis;
  if (size == Size::kBytes) extent.highest = INT64_MAX;
  extents.add(extent);
}

void Sizes::add_tokens(Size side, Extents& extents) {
  int64_t* tokens = side == Size::kQueries ? queries_ : keys_;
  for (size_t i = 0; i < length_.size(); ++i) {
    const bool is_any = target_ == Target::kSoftmax;  // it knows no grid
    extents.add({tokens + i, kSizeNames[static_cast<int>(side)], 0, is_any ? kLongestAxis : length_[i]});
  }
}

Sizes::Extents Sizes::extents(Operand operand) {
  const Layout parts = layout(operand);
  Extents found{};
  found.has_batch = parts.batch == Size::kBatch;
  if (parts.tokens == Size::kQueries || parts.tokens == Size::kKeys)
    add_tokens(parts.tokens, found);
  else
    add_size(parts.tokens, found);
  add_size(parts.heads, found);
  add_size(parts.features, found);
  if (operand == Operand::kRpb || operand == Operand::kDrpb)
    for (const int64_t size : kernel_size_) found.add({nullptr, "", 2 * size - 1, 2 * size - 1});
  if (operand == Operand::kOffsets) {
    const auto rank = static_cast<int64_t>(length_.size());
    found.add({nullptr, "", rank, rank});
    found.add({nullptr, "", 2, 2});
  }
  return found;
}

std::string Sizes::in_words(const Extents& extents) const {
  std::string words;
  if (extents.has_batch) words = batch() < 0 ? "batch..." : "batch... of " + std::to_string(batch());
  for (int i = 0; i < extents.count; ++i) {
    const Extent& extent = extents.at[i];
    words += words.empty() ? "" : ", ";
    if (extent.size == nullptr)
      words += std::to_string(extent.lowest);
    else
      words += extent.name + (*extent.size < 0 ? std::string() : "=" + std::to_string(*extent.size));
  }
  return "[" + words + "]";
}

bool Sizes::match_batch(Integers shape, int leading, const Extents& extents) {
  if (leading < 0 || (leading > 0 && !extents.has_batch)) return false;
  int64_t batch = 1;
  for (int i = 0; i < leading; ++i)
    if (__builtin_mul_overflow(batch, shape[i], &batch)) return false;
  int64_t& known = common_[static_cast<int>(Size::kBatch)];
  if (extents.has_batch && known < 0) known = batch;
  return !extents.has_batch || known == batch;
}

std::string Sizes::match(Operand operand, Integers shape) {
  const Extents expected = extents(operand);
  const int leading = static_cast<int>(shape.size()) - expected.count;
  const auto given = [&] {
    return std::string(kOperandNames[static_cast<int>(operand)]) + " has the shape " + to_string(shape);
  };
  if (!match_batch(shape, leading, expected)) return given() + ", not " + in_words(expected);
  for (int i = 0; i < expected.count; ++i) {
    const Extent& extent = expected.at[i];
    const int64_t value = shape[leading + i], known = extent.size == nullptr ? extent.lowest : *extent.size;
    if (known >= 0 && value != known) return given() + ", not " + in_words(expected);
    if (value < extent.lowest || value > extent.highest)
      return given() + ": " + extent.name + " is " + std::to_string(value) + ", legal are " +
             std::to_string(extent.lowest) + " to " + std::to_string(extent.highest);
    if (extent.size != nullptr) *extent.size = value;
  }
  return "";
}

}  // namespace jax_na
