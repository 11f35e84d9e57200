// SPDX-License-Identifier: Apache-2.0
// The definition, one loop per index: what the paper calls the naive kernels, for every element type.
//
//   qk (PN)        weights[q, j] = <x[q], y[key(q, j)]>
//   av (NN)        x[q] = sum_j weights[q, j] y[key(q, j)]
//   inverse (IN)   y[k] = sum over the queries q that see k of weights[q, slot(q, k)] x[q]
#include "kernels.h"

namespace jax_na {
namespace {

struct Token {
  int64_t batch;
  int head;
  int coordinate[kAxes];  // inside the queries (or keys) present
  int64_t row;            // (batch * tokens + token) * heads + head
};

Token token_of(int64_t row, const int (&extent)[kAxes], int heads) {
  Token t;
  t.row = row;
  t.head = static_cast<int>(row % heads);
  int64_t rest = row / heads;
  for (int a = kAxes - 1; a >= 0; --a) {
    t.coordinate[a] = static_cast<int>(rest % extent[a]);
    rest /= extent[a];
  }
  t.batch = rest;
  return t;
}

// Position, group and window of one query along one axis.
struct QueryOnAxis {
  int position, group, start, stop;
};

QueryOnAxis query_on_axis(const Problem& p, int axis, int local) {
  const Axis& a = p.axis[axis];
  const int coordinate = p.q0[axis] + local, group = coordinate % a.dilation, position = coordinate / a.dilation;
  const Range keys = window(a, group_length(a, group), position);
  return {position, group, keys.start, keys.stop};
}

// Calls body(slot, row of y) for every key that the query sees, in slot order.
template <class Body>
void for_each_key(const Problem& p, const Token& query, const Body& body) {
  QueryOnAxis q[kAxes];
  for (int a = 0; a < kAxes; ++a) q[a] = query_on_axis(p, a, query.coordinate[a]);
  const int kv_head = query.head / query_heads_per_kv_head(p);
  auto local = [&](int axis, int position) { return position * p.axis[axis].dilation + q[axis].group - p.k0[axis]; };
  for (int i = q[0].start; i < q[0].stop; ++i)
    for (int j = q[1].start; j < q[1].stop; ++j)
      for (int k = q[2].start; k < q[2].stop; ++k) {
        const int slot =
            ((i - q[0].start) * p.axis[1].kernel_size + j - q[1].start) * p.axis[2].kernel_size + k - q[2].start;
        const int64_t token = (int64_t{local(0, i)} * p.nk[1] + local(1, j)) * p.nk[2] + local(2, k);
        body(slot, (query.batch * key_tokens(p) + token) * p.kv_heads + kv_head);
      }
}

// Calls body(slot, row of x) for every query present that sees the key, over the query heads that share it.
template <class Body>
void for_each_query(const Problem& p, const Token& key, const Body& body) {
  int position[kAxes], group[kAxes];
  Range queries[kAxes];
  for (int a = 0; a < kAxes; ++a) {
    const Axis& axis = p.axis[a];
    const int coordinate = p.k0[a] + key.coordinate[a];
    position[a] = coordinate / axis.dilation;
    group[a] = coordinate % axis.dilation;
    const Range all = inverse_window(axis, group_length(axis, group[a]), position[a]);
    const Range present = positions_present(axis.dilation, group[a], p.q0[a], p.nq[a]);
    queries[a] = {max(all.start, present.start), min(all.stop, present.stop)};
  }
  auto slot_on = [&](int a, int i) {
    return position[a] - window(p.axis[a], group_length(p.axis[a], group[a]), i).start;
  };
  auto local = [&](int a, int i) { return i * p.axis[a].dilation + group[a] - p.q0[a]; };
  const int repeats = query_heads_per_kv_head(p);
  for (int i = queries[0].start; i < queries[0].stop; ++i)
    for (int j = queries[1].start; j < queries[1].stop; ++j)
      for (int k = queries[2].start; k < queries[2].stop; ++k) {
        const int slot =
            (slot_on(0, i) * p.axis[1].kernel_size + slot_on(1, j)) * p.axis[2].kernel_size + slot_on(2, k);
        const int64_t token = (int64_t{local(0, i)} * p.nq[1] + local(1, j)) * p.nq[2] + local(2, k);
        for (int r = 0; r < repeats; ++r)
          body(slot, (key.batch * query_tokens(p) + token) * p.heads + key.head * repeats + r);
      }
}

template <class T>
void qk(const UnfusedArgs& args, const Parallel& parallel) {
  const Problem& p = args.problem;
  const int64_t dim = p.value_dim;
  auto body = [&](int64_t row, char*) {
    auto* weights = static_cast<Accumulator<T>*>(args.weights) + row * p.pitch;
    const T* x = static_cast<const T*>(args.x) + row * dim;
    for (int j = 0; j < p.pitch; ++j) weights[j] = 0;
    for_each_key(p, token_of(row, p.nq, p.heads), [&](int slot, int64_t key) {
      const T* y = static_cast<const T*>(args.y) + key * dim;
      Accumulator<T> sum = 0;
      for (int64_t c = 0; c < dim; ++c) sum += to_accumulator(x[c]) * to_accumulator(y[c]);
      weights[slot] = sum;
    });
  };
  parallel_for(parallel, p.batch * query_tokens(p) * p.heads, body);
}

template <class T>
void av(const UnfusedArgs& args, const Parallel& parallel) {
  const Problem& p = args.problem;
  const int64_t dim = p.value_dim;
  auto body = [&](int64_t row, char*) {
    const auto* weights = static_cast<const Accumulator<T>*>(args.weights) + row * p.pitch;
    const Token query = token_of(row, p.nq, p.heads);
    for (int64_t c = 0; c < dim; ++c) {
      Accumulator<T> sum = 0;
      for_each_key(p, query, [&](int slot, int64_t key) {
        sum += weights[slot] * to_accumulator(static_cast<const T*>(args.y)[key * dim + c]);
      });
      assign(static_cast<T*>(args.x)[row * dim + c], sum);
    }
  };
  parallel_for(parallel, p.batch * query_tokens(p) * p.heads, body);
}

template <class T>
void inverse(const UnfusedArgs& args, const Parallel& parallel) {
  const Problem& p = args.problem;
  const int64_t dim = p.value_dim;
  auto body = [&](int64_t row, char*) {
    const Token key = token_of(row, p.nk, p.kv_heads);
    for (int64_t c = 0; c < dim; ++c) {
      Accumulator<T> sum = 0;
      for_each_query(p, key, [&](int slot, int64_t query) {
        sum += static_cast<const Accumulator<T>*>(args.weights)[query * p.pitch + slot] *
               to_accumulator(static_cast<const T*>(args.x)[query * dim + c]);
      });
      assign(static_cast<T*>(args.y)[row * dim + c], sum);
    }
  };
  parallel_for(parallel, p.batch * key_tokens(p) * p.kv_heads, body);
}

}  // namespace

void naive_qk(const UnfusedArgs& args, const Parallel& parallel) {
  with_dtype(args.dtype, [&](auto element) { qk<decltype(element)>(args, parallel); });
}
void naive_av(const UnfusedArgs& args, const Parallel& parallel) {
  with_dtype(args.dtype, [&](auto element) { av<decltype(element)>(args, parallel); });
}
void naive_inverse(const UnfusedArgs& args, const Parallel& parallel) {
  with_dtype(args.dtype, [&](auto element) { inverse<decltype(element)>(args, parallel); });
}

}  // namespace jax_na
