// SPDX-License-Identifier: Apache-2.0
#include "cuda/fused/launch.cuh"

template const char* jax_na::cuda::run_backward_query<jax_na::cuda::ExactF32>(const BackwardArgs&, Stream);
