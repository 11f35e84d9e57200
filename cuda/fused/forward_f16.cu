// SPDX-License-Identifier: Apache-2.0
#include "cuda/fused/launch.cuh"

template const char* jax_na::cuda::run_forward<jax_na::cuda::F16>(const ForwardArgs&, Stream);
