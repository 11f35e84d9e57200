// SPDX-License-Identifier: Apache-2.0
// In place of the kernels of an arithmetic, JAX_NA_MATH, that a build leaves out: an error.
#include "cuda/block/arithmetic.cuh"
#include "cuda/host/variants.h"

namespace jax_na::cuda {

template <class Math>
const char* run_forward(const ForwardArgs&, Stream) {
  return "this arithmetic is not built";
}
template <class Math>
const char* run_backward_query(const BackwardArgs&, Stream) {
  return "this arithmetic is not built";
}
template <class Math>
const char* run_backward_key(const BackwardArgs&, Stream) {
  return "this arithmetic is not built";
}
template <class Math>
const char* run_halo_forward(const ForwardArgs&, Stream) {
  return "this arithmetic is not built";
}
template <class Math>
const char* run_halo_query(const BackwardArgs&, Stream) {
  return "this arithmetic is not built";
}
template <class Math>
const char* run_halo_key(const BackwardArgs&, Stream) {
  return "this arithmetic is not built";
}
template <class Math>
const char* run_gemm(Pass, const UnfusedArgs&, Stream) {
  return "this arithmetic is not built";
}

template const char* run_forward<JAX_NA_MATH>(const ForwardArgs&, Stream);
template const char* run_backward_query<JAX_NA_MATH>(const BackwardArgs&, Stream);
template const char* run_backward_key<JAX_NA_MATH>(const BackwardArgs&, Stream);
template const char* run_halo_forward<JAX_NA_MATH>(const ForwardArgs&, Stream);
template const char* run_halo_query<JAX_NA_MATH>(const BackwardArgs&, Stream);
template const char* run_halo_key<JAX_NA_MATH>(const BackwardArgs&, Stream);
template const char* run_gemm<JAX_NA_MATH>(Pass, const UnfusedArgs&, Stream);

}  // namespace jax_na::cuda
