// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/launch.cuh"

template const char* jax_na::cuda::run_hopper_forward<jax_na::cuda::BF16Type>(const ForwardArgs&, Stream);
