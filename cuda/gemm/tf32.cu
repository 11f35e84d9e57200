// SPDX-License-Identifier: Apache-2.0
#include "cuda/gemm/launch.cuh"

template const char* jax_na::cuda::run_gemm<jax_na::cuda::TF32>(Unfused, const GemmArgs&, Stream);
