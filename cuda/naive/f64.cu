// SPDX-License-Identifier: Apache-2.0
#include "cuda/naive/naive.cuh"

template const char* jax_na::cuda::run_naive<double>(Unfused, const UnfusedArgs&, Stream);
