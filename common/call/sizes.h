// SPDX-License-Identifier: Apache-2.0
// The sizes that the arrays of a call have in common: the first array that has one says what it is, and all others are
// compared with it.
#pragma once

#include <limits.h>

#include <string>

#include "common/call/attributes.h"
#include "common/call/operands.h"
#include "common/problem.h"

namespace jax_na {

// Sums and products of some of these sizes, in the kernels, must stay below 2^31.
constexpr int64_t kLongestAxis = int64_t{1} << 28, kMostFeatures = int64_t{1} << 20;

std::string to_string(Integers values);

class Sizes {
 public:
  // The attributes have been checked.
  Sizes(Target target, const Attributes& attributes);

  // Compares the shape of an array. Empty, or what is wrong with it.
  std::string match(Operand operand, Integers shape);

  // Of what no array has: `otherwise`.
  int of(Size size, int otherwise) const;
  int64_t batch() const { return common_[static_cast<int>(Size::kBatch)]; }
  // Tokens present along an axis given; 0 where no array has any.
  int queries(int axis) const { return queries_[axis] < 0 ? 0 : static_cast<int>(queries_[axis]); }
  int keys(int axis) const { return keys_[axis] < 0 ? 0 : static_cast<int>(keys_[axis]); }

 private:
  // One extent of a shape: a size that arrays have in common, or a constant.
  struct Extent {
    int64_t* size;  // -1 until an array has one; null for a constant
    const char* name;
    int64_t lowest, highest;
  };
  struct Extents {
    Extent at[2 + kAxes];
    int count;
    bool has_batch;

    void add(const Extent& extent) { at[count++] = extent; }
  };

  Extents extents(Operand operand);
  void add_size(Size size, Extents& extents);
  void add_tokens(Size side, Extents& extents);
  bool match_batch(Integers shape, int leading, const Extents& extents);
  std::string in_words(const Extents& extents) const;

  const Target target_;
  const Integers kernel_size_, length_;
  int64_t slots_ = 1;
  int64_t common_[static_cast<int>(Size::kQueries)];
  int64_t queries_[kAxes], keys_[kAxes];  // along the axes given
};

}  // namespace jax_na
