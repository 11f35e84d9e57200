// SPDX-License-Identifier: Apache-2.0
// The definition, one thread per result: what the paper calls the naive kernels, for every element type.
//
//   qk (PN)        weights[q, j] = <x[q], y[key(q, j)]>                                       thread: query, slot
//   av (NN)        x[q] = sum_j weights[q, j] y[key(q, j)]                                    query, some channels
//   inverse (IN)   y[k] = sum over the queries q that see k of weights[q, slot(q, k)] x[q]    key, some channels
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/call/args.h"
#include "common/problem.h"
#include "common/walk.h"
#include "cuda/host/launch.h"
#include "cuda/naive/config.h"
#include "cuda/naive/sums.cuh"
#include "cuda/ptx/element.cuh"

namespace jax_na::cuda {

// A thread's index, and the problem with the offsets of this call.
struct Work {
  Problem problem;
  int64_t thread;
  bool region_present;
};

__device__ __forceinline__ Work find_work(const UnfusedArgs& args) {
  Work work{args.problem, int64_t{blockIdx.x} * kNaiveThreads + threadIdx.x, true};
  place(work.problem, args.offsets);
  for (int axis = 0; axis < kAxes; ++axis)
    work.region_present = work.region_present && region_present(work.problem, axis);
  return work;
}

// Whether those of all queries that see a key do.
__device__ __forceinline__ bool windows_present(const Problem& problem, const View& key) {
  bool present = true, seen = true;
  for (int axis = 0; axis < kAxes; ++axis) {
    const AxisView& queries = key.axis[axis];
    const Group group = group_of(problem, axis, queries.group);
    if (queries.seen.start >= queries.seen.stop) {
      seen = false;
    } else {
      const Range keys = tile_keys(problem.axis[axis], group.length, queries.seen.start, queries.seen.stop - 1);
      present = present && keys.start >= group.keys.start && keys.stop <= group.keys.stop;
    }
  }
  return present || !seen;
}

template <class Element, int kWidth>
__global__ void __launch_bounds__(kNaiveThreads) naive_qk_kernel(const __grid_constant__ UnfusedArgs args) {
  const Work work = find_work(args);
  const Problem& problem = work.problem;
  const int64_t row = work.thread / problem.pitch;
  if (row >= problem.batch * query_tokens(problem) * problem.heads) return;
  Sum<Element>& result = static_cast<Sum<Element>*>(args.weights)[work.thread];
  result = 0;
  int slot = static_cast<int>(work.thread % problem.pitch);
  if (slot >= slots(problem)) return;
  if (!work.region_present) {
    result = NAN;
    return;
  }

  const View query = view_of_query(problem, row);
  int position[kAxes];
  bool visible = true;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    position[axis] = query.axis[axis].seen.start + slot % problem.axis[axis].kernel_size;
    slot /= problem.axis[axis].kernel_size;
    visible = visible && position[axis] < query.axis[axis].seen.stop;
  }
  if (!visible) return;
  if (!window_present(problem, query)) {
    result = NAN;
    return;
  }
  const int64_t key =
      row_at(query, position, problem.nk, problem.kv_heads, query.head / query_heads_per_kv_head(problem));
  const auto* x =
      reinterpret_cast<const Channels<Element, kWidth>*>(static_cast<const Element*>(args.x) + row * problem.value_dim);
  const auto* y =
      reinterpret_cast<const Channels<Element, kWidth>*>(static_cast<const Element*>(args.y) + key * problem.value_dim);
  Sum<Element> sum = 0;
  for (int vector = 0; vector < problem.value_dim / kWidth; ++vector) {
    const Channels<Element, kWidth> left = x[vector], right = y[vector];
    for (int i = 0; i < kWidth; ++i) sum += widen(left.at[i]) * widen(right.at[i]);
  }
  result = sum;
}

// Writes sums to the channels of a result.
template <class Element, int kWidth>
__device__ __forceinline__ void store(Channels<Element, kWidth>& to, const Sum<Element> (&sum)[kWidth], bool valid) {
  Channels<Element, kWidth> result;
  for (int i = 0; i < kWidth; ++i) narrow(result.at[i], valid ? sum[i] : static_cast<Sum<Element>>(NAN));
  to = result;
}

template <class Element, int kWidth>
__global__ void __launch_bounds__(kNaiveThreads) naive_av_kernel(const __grid_constant__ UnfusedArgs args) {
  const Work work = find_work(args);
  const Problem& problem = work.problem;
  const int vectors = problem.value_dim / kWidth, vector = static_cast<int>(work.thread % vectors);
  const int64_t row = work.thread / vectors;
  if (row >= problem.batch * query_tokens(problem) * problem.heads) return;

  const auto* y = static_cast<const Channels<Element, kWidth>*>(args.y) + vector;
  const auto* weights = static_cast<const Sum<Element>*>(args.weights) + row * problem.pitch;
  Sum<Element> sum[kWidth] = {};
  View query{};
  bool valid = work.region_present;
  if (valid) {
    query = view_of_query(problem, row);
    valid = window_present(problem, query);
  }
  if (valid)
    for_each_key(problem, query, [&](int slot, int64_t key) {
      const Channels<Element, kWidth> values = y[key * vectors];
      add_weighted(weights[slot], values, sum);
    });
  store(static_cast<Channels<Element, kWidth>*>(args.x)[work.thread], sum, valid);
}

template <class Element, int kWidth>
__global__ void __launch_bounds__(kNaiveThreads) naive_inverse_kernel(const __grid_constant__ UnfusedArgs args) {
  const Work work = find_work(args);
  const Problem& problem = work.problem;
  const int vectors = problem.value_dim / kWidth, vector = static_cast<int>(work.thread % vectors);
  const int64_t row = work.thread / vectors;
  if (row >= problem.batch * key_tokens(problem) * problem.kv_heads) return;

  const auto* x = static_cast<const Channels<Element, kWidth>*>(args.x) + vector;
  Sum<Element> sum[kWidth] = {};
  View key{};
  bool valid = work.region_present;
  if (valid) {
    key = view_of_key(problem, row);
    valid = windows_present(problem, key);
  }
  if (valid)
    for_each_query(problem, key, [&](int slot, int64_t query) {
      const Channels<Element, kWidth> values = x[query * vectors];
      add_weighted(static_cast<const Sum<Element>*>(args.weights)[query * problem.pitch + slot], values, sum);
    });
  store(static_cast<Channels<Element, kWidth>*>(args.y)[work.thread], sum, valid);
}

}  // namespace jax_na::cuda
