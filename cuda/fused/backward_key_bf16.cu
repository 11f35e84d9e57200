// SPDX-License-Identifier: Apache-2.0
#include "cuda/fused/launch.cuh"

template const char* jax_na::cuda::run_backward_key<jax_na::cuda::BF16>(const BackwardArgs&, Stream);
