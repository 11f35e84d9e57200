// SPDX-License-Identifier: Apache-2.0
// The fused kernels by element type and precision.
#include "cuda/host/select.h"
#include "cuda/sm90/rule.h"

namespace jax_na::cuda {

template <class Math>
const char* run_forward(const ForwardArgs&, Stream);
template <class Type>
const char* run_hopper_forward(const ForwardArgs&, Stream);
bool device_is_hopper();
template <class Math>
const char* run_backward_query(const BackwardArgs&, Stream);
template <class Math>
const char* run_backward_key(const BackwardArgs&, Stream);

namespace {

template <class Math>
const char* run_backward(const BackwardArgs& a, Stream stream) {
  const char* error = run_backward_query<Math>(a, stream);
  return error != nullptr ? error : run_backward_key<Math>(a, stream);
}

}  // namespace

const char* fused_forward(const ForwardArgs& a, Stream stream) {
  if (const char* error = check(a.problem)) return error;
#ifdef JAX_NA_HOPPER
  if (hopper_obstacle(a) == nullptr && device_is_hopper())
    return a.dtype == DType::kFloat16 ? run_hopper_forward<F16Type>(a, stream)
                                      : run_hopper_forward<BF16Type>(a, stream);
#endif
  return with_arithmetic(a.dtype, a.precision,
                         [&](auto math) { return run_forward<typename decltype(math)::type>(a, stream); });
}

const char* fused_backward(const BackwardArgs& a, Stream stream) {
  if (const char* error = check(a.problem)) return error;
  return with_arithmetic(a.dtype, a.precision,
                         [&](auto math) { return run_backward<typename decltype(math)::type>(a, stream); });
}

}  // namespace jax_na::cuda
