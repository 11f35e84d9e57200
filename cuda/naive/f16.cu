// SPDX-License-Identifier: Apache-2.0
#include "cuda/naive/naive.cuh"

template const char* jax_na::cuda::run_naive<jax_na::cuda::Half>(Unfused, const UnfusedArgs&, Stream);
