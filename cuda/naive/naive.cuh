// SPDX-License-Identifier: Apache-2.0
// The definition, one thread per result: what the paper calls the naive kernels, for every element type.
//
//   qk (PN)        weights[q, j] = <x[q], y[key(q, j)]>                                       thread: query, slot
//   av (NN)        x[q] = sum_j weights[q, j] y[key(q, j)]                                    query, some channels
//   inverse (IN)   y[k] = sum over the queries q that see k of weights[q, slot(q, k)] x[q]    key, some channels
#pragma once

#include <math.h>

#include "common/call/args.h"
#include "common/walk.h"
#include "cuda/host/launch.h"
#include "cuda/ptx/element.cuh"

namespace jax_na::cuda {

constexpr int kNaiveThreads = 128;

// Channels that are loaded in one piece.
template <class T, int kWidth>
struct alignas(kWidth * sizeof(T)) Channels {
  T at[kWidth];
};
template <class T>
using Sum = decltype(widen(T{}));

// A thread's index, and the problem with the offsets of this call.
struct Work {
  Problem problem;
  int64_t thread;
  bool region_present;
};

__device__ __forceinline__ Work find_work(const UnfusedArgs& args) {
  Work w{args.problem, int64_t{blockIdx.x} * kNaiveThreads + threadIdx.x, true};
  place(w.problem, args.offsets);
  for (int a = 0; a < kAxes; ++a) w.region_present = w.region_present && region_present(w.problem, a);
  return w;
}

// Whether a window lies inside the keys present.
__device__ __forceinline__ bool window_present(const Problem& p, const View& query) {
  bool present = true;
  for (int a = 0; a < kAxes; ++a) {
    const AxisView& keys = query.axis[a];
    present = present && keys.seen.start * keys.step + keys.shift >= 0 &&
              (keys.seen.stop - 1) * keys.step + keys.shift < p.nk[a];
  }
  return present;
}

// Whether those of all queries that see a key do.
__device__ __forceinline__ bool windows_present(const Problem& p, const View& key) {
  bool present = true, seen = true;
  for (int a = 0; a < kAxes; ++a) {
    const AxisView& queries = key.axis[a];
    const Group group = group_of(p, a, queries.group);
    if (queries.seen.start >= queries.seen.stop) {
      seen = false;
    } else {
      const Range keys = tile_keys(p.axis[a], group.length, queries.seen.start, queries.seen.stop - 1);
      present = present && keys.start >= group.keys.start && keys.stop <= group.keys.stop;
    }
  }
  return present || !seen;
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kNaiveThreads) naive_qk_kernel(const __grid_constant__ UnfusedArgs args) {
  const Work work = find_work(args);
  const Problem& p = work.problem;
  const int64_t row = work.thread / p.pitch;
  if (row >= p.batch * query_tokens(p) * p.heads) return;
  Sum<T>& result = static_cast<Sum<T>*>(args.weights)[work.thread];
  result = 0;
  int slot = static_cast<int>(work.thread % p.pitch);
  if (slot >= slots(p)) return;
  if (!work.region_present) {
    result = NAN;
    return;
  }

  const View query = view_of_query(p, row);
  int position[kAxes];
  bool visible = true;
  for (int a = kAxes - 1; a >= 0; --a) {
    position[a] = query.axis[a].seen.start + slot % p.axis[a].kernel_size;
    slot /= p.axis[a].kernel_size;
    visible = visible && position[a] < query.axis[a].seen.stop;
  }
  if (!visible) return;
  if (!window_present(p, query)) {
    result = NAN;
    return;
  }
  const int64_t key = row_at(query, position, p.nk, p.kv_heads, query.head / query_heads_per_kv_head(p));
  const auto* x = reinterpret_cast<const Channels<T, kWidth>*>(static_cast<const T*>(args.x) + row * p.value_dim);
  const auto* y = reinterpret_cast<const Channels<T, kWidth>*>(static_cast<const T*>(args.y) + key * p.value_dim);
  Sum<T> sum = 0;
  for (int c = 0; c < p.value_dim / kWidth; ++c) {
    const Channels<T, kWidth> a = x[c], b = y[c];
    for (int i = 0; i < kWidth; ++i) sum += widen(a.at[i]) * widen(b.at[i]);
  }
  result = sum;
}

// Writes sums to the channels of a result.
template <class T, int kWidth>
__device__ __forceinline__ void store(Channels<T, kWidth>& to, const Sum<T> (&sum)[kWidth], bool valid) {
  Channels<T, kWidth> result;
  for (int i = 0; i < kWidth; ++i) narrow(result.at[i], valid ? sum[i] : static_cast<Sum<T>>(NAN));
  to = result;
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kNaiveThreads) naive_av_kernel(const __grid_constant__ UnfusedArgs args) {
  const Work work = find_work(args);
  const Problem& p = work.problem;
  const int vectors = p.value_dim / kWidth, vector = static_cast<int>(work.thread % vectors);
  const int64_t row = work.thread / vectors;
  if (row >= p.batch * query_tokens(p) * p.heads) return;

  const auto* y = static_cast<const Channels<T, kWidth>*>(args.y) + vector;
  const auto* weights = static_cast<const Sum<T>*>(args.weights) + row * p.pitch;
  Sum<T> sum[kWidth] = {};
  View query{};
  bool valid = work.region_present;
  if (valid) {
    query = view_of_query(p, row);
    valid = window_present(p, query);
  }
  if (valid)
    for_each_key(p, query, [&](int slot, int64_t key) {
      const Channels<T, kWidth> values = y[key * vectors];
      const Sum<T> weight = weights[slot];
      for (int i = 0; i < kWidth; ++i) sum[i] += weight * widen(values.at[i]);
    });
  store(static_cast<Channels<T, kWidth>*>(args.x)[work.thread], sum, valid);
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kNaiveThreads) naive_inverse_kernel(const __grid_constant__ UnfusedArgs args) {
  const Work work = find_work(args);
  const Problem& p = work.problem;
  const int vectors = p.value_dim / kWidth, vector = static_cast<int>(work.thread % vectors);
  const int64_t row = work.thread / vectors;
  if (row >= p.batch * key_tokens(p) * p.kv_heads) return;

  const auto* x = static_cast<const Channels<T, kWidth>*>(args.x) + vector;
  Sum<T> sum[kWidth] = {};
  View key{};
  bool valid = work.region_present;
  if (valid) {
    key = view_of_key(p, row);
    valid = windows_present(p, key);
  }
  if (valid)
    for_each_query(p, key, [&](int slot, int64_t query) {
      const Channels<T, kWidth> values = x[query * vectors];
      const Sum<T> weight = static_cast<const Sum<T>*>(args.weights)[query * p.pitch + slot];
      for (int i = 0; i < kWidth; ++i) sum[i] += weight * widen(values.at[i]);
    });
  store(static_cast<Channels<T, kWidth>*>(args.y)[work.thread], sum, valid);
}

}  // namespace jax_na::cuda
