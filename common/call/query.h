// SPDX-License-Identifier: Apache-2.0
// What is known of a call when a program is compiled, from what Python says of it.
#pragma once

#include <limits.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "common/call/sizes.h"
#include "common/call/variant.h"

namespace jax_na::binding {

using Names = std::vector<std::string>;
using AxisTuple = std::tuple<int, int, int, int, bool>;  // jax_na.neighborhood.Axis

inline Axis checked_axis(const AxisTuple& given) {
  const auto [length, kernel_size, stride, dilation, is_causal] = given;
  if (kernel_size < 1 || dilation < 1 || stride < 1 || stride > kernel_size || int64_t{kernel_size} * dilation > length)
    throw std::invalid_argument("there is no such axis: length " + std::to_string(length) + ", kernel_size " +
                                std::to_string(kernel_size) + ", stride " + std::to_string(stride) + ", dilation " +
                                std::to_string(dilation));
  return {length, kernel_size, stride, dilation, is_causal};
}

// Weights between two rows of them, for a window of so many slots: rows begin with whole pieces of 16 bytes, of any
// type.
inline int pitch(int64_t slots) { return static_cast<int>((slots + 7) / 8 * 8); }

template <int kCount>
int index_of(const std::string& name, const char* const (&names)[kCount], const char* what) {
  std::string known;
  for (int i = 0; i < kCount; ++i) {
    if (name == names[i]) return i;
    known += (known.empty() ? "" : ", ") + std::string(names[i]);
  }
  throw std::invalid_argument(std::string("there is no ") + what + " " + name + "; there are " + known);
}

inline Query make_query(const std::vector<AxisTuple>& axes, int head_dim, int value_dim, const std::string& dtype,
                        bool is_exact, const Names& operands, std::optional<int> given_pitch) {
  if (axes.empty() || axes.size() > kAxes)
    throw std::invalid_argument("1 to 3 axes are supported, not " + std::to_string(axes.size()));
  if (head_dim < 0 || value_dim < 0) throw std::invalid_argument("head_dim and value_dim must not be negative");
  Query query{};
  Problem& p = query.problem;
  p.rank = static_cast<int>(axes.size());
  for (int a = 0; a < kAxes; ++a) {
    const int i = a - (kAxes - p.rank);
    p.axis[a] = i < 0 ? Axis{1, 1, 1, 1, false} : checked_axis(axes[i]);
  }
  p.head_dim = head_dim;
  p.value_dim = value_dim;
  p.pitch = given_pitch.value_or(pitch(slots(p)));
  query.dtype = static_cast<DType>(index_of(dtype, kDTypeNames, "element type"));
  query.is_exact = is_exact;
  for (const std::string& name : operands)
    query.operands |= bit(static_cast<Operand>(index_of(name, kOperandNames, "operand")));
  return query;
}

// Of the arrays of a call: batch, heads, kv_heads, and per axis the queries and keys; 0 and none where not known.
using SizeTuple = std::tuple<int64_t, int64_t, int64_t, std::vector<int64_t>, std::vector<int64_t>>;

inline void place_tokens(const std::vector<int64_t>& given, const Problem& p, int (&tokens)[kAxes]) {
  if (given.empty()) return;
  if (given.size() != static_cast<size_t>(p.rank))
    throw std::invalid_argument("there are " + std::to_string(given.size()) + " sizes for " + std::to_string(p.rank) +
                                " axes");
  for (int a = 0; a < kAxes; ++a) {
    const int i = a - (kAxes - p.rank);
    const int64_t count = i < 0 ? 1 : given[i];
    if (count < 0 || count > p.axis[a].length)
      throw std::invalid_argument(std::to_string(count) + " tokens are not on an axis of length " +
                                  std::to_string(p.axis[a].length));
    tokens[a] = static_cast<int>(count);
  }
}

inline void place_sizes(const SizeTuple& sizes, Problem& p) {
  const auto& [batch, heads, kv_heads, queries, keys] = sizes;
  if (batch < 0 || heads < 0 || kv_heads < 0 || heads > INT_MAX || kv_heads > INT_MAX)
    throw std::invalid_argument("batch, heads and kv_heads must not be negative, heads at most 2^31 - 1");
  p.batch = batch;
  p.heads = static_cast<int>(heads);
  p.kv_heads = static_cast<int>(kv_heads);
  place_tokens(queries, p, p.nq);
  place_tokens(keys, p, p.nk);
}

}  // namespace jax_na::binding
