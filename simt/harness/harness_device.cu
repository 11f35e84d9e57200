// SPDX-License-Identifier: Apache-2.0
// The interface of harness.cc on a real GPU: the same tests run there, and compute-sanitizer over them.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "simt/harness/harness.h"

namespace jax_na::cuda {
namespace {

// Bytes before and after every array, to be found unchanged; and arrays are aligned to 16 bytes, not more.
constexpr int64_t kGuard = 272;
constexpr unsigned char kGuardByte = 0xa5;

// The copy of a Buffer on the device.
struct DeviceBuffer {
  explicit DeviceBuffer(const Buffer& buffer) : host(buffer) {
    if (host.data == nullptr) return;
    cudaMalloc(&memory, static_cast<size_t>(host.bytes + 2 * kGuard));
    cudaMemset(memory, kGuardByte, static_cast<size_t>(host.bytes + 2 * kGuard));
    cudaMemcpy(data(), host.data, static_cast<size_t>(host.bytes), cudaMemcpyHostToDevice);
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(memory); }

  void* data() const { return host.data == nullptr ? nullptr : static_cast<char*>(memory) + kGuard; }

  // Copies it back; false if the guards have changed.
  bool fetch() const {
    if (host.data == nullptr) return true;
    std::vector<unsigned char> all(static_cast<size_t>(host.bytes + 2 * kGuard));
    cudaMemcpy(all.data(), memory, all.size(), cudaMemcpyDeviceToHost);
    memcpy(host.data, all.data() + kGuard, static_cast<size_t>(host.bytes));
    for (int64_t i = 0; i < kGuard; ++i)
      if (all[i] != kGuardByte || all[all.size() - 1 - i] != kGuardByte) return false;
    return true;
  }

  Buffer host;
  void* memory = nullptr;
};

std::string run_checked(const HarnessCall& call, const Buffer* buffers, int count) {
  std::deque<DeviceBuffer> copies;
  std::vector<void*> data;
  for (int i = 0; i < count; ++i) data.push_back(copies.emplace_back(buffers[i]).data());
  const std::string refusal = launch(call, buffers, data.data(), count, nullptr);
  if (!refusal.empty()) return "refused: " + refusal;
  const cudaError_t error = cudaDeviceSynchronize();
  if (error != cudaSuccess) return cudaGetErrorString(error);
  std::string findings;
  for (const DeviceBuffer& copy : copies)
    if (!copy.fetch()) findings += std::string("written beyond the ends of ") + copy.host.name + "\n";
  return findings;
}

}  // namespace
}  // namespace jax_na::cuda

// Writes what went wrong into `report`, "" if nothing.
extern "C" void jax_na_run(const jax_na::cuda::HarnessCall* call, const jax_na::cuda::Buffer* buffers, int count,
                           char* report, int size) {
  snprintf(report, static_cast<size_t>(size), "%s", jax_na::cuda::run_checked(*call, buffers, count).c_str());
}
