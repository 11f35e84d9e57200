// SPDX-License-Identifier: Apache-2.0
// Runs one call of a CUDA kernel on the executor.
#include "simt/harness/harness.h"

#include <stdio.h>

#include <string>
#include <vector>

#include "simt/executor/executor.h"

namespace jax_na::cuda {
namespace {

std::string run_checked(const HarnessCall& call, const Buffer* buffers, int count) {
  simt::reset();
  simt::set_seed(call.seed);
  std::vector<void*> data;
  for (int i = 0; i < count; ++i) {
    const Buffer& b = buffers[i];
    data.push_back(b.data);
    if (b.data != nullptr) simt::register_buffer(b.data, static_cast<size_t>(b.bytes), b.name, b.is_result != 0);
  }
  const std::string refusal = launch(call, buffers, data.data(), count, nullptr);
  if (!refusal.empty()) return "refused: " + refusal;
  return simt::findings() > 0 ? simt::report() : "";
}

}  // namespace
}  // namespace jax_na::cuda

// Writes what went wrong into `report`, "" if nothing.
extern "C" void jax_na_run(const jax_na::cuda::HarnessCall* call, const jax_na::cuda::Buffer* buffers, int count,
                           char* report, int size) {
  snprintf(report, static_cast<size_t>(size), "%s", jax_na::cuda::run_checked(*call, buffers, count).c_str());
}
