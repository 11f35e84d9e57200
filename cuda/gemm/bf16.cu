// SPDX-License-Identifier: Apache-2.0
#include "cuda/gemm/launch.cuh"

template const char* jax_na::cuda::run_gemm<jax_na::cuda::BF16>(Unfused, const GemmArgs&, Stream);
