// SPDX-License-Identifier: Apache-2.0
// The forward kernel for compute capability 9.0 with faults planted in its protocol, for test_faulty_sm90.py:
// the kernel itself, on rings, turns and barriers of which one is wrong.
#include <stdio.h>

#include "cuda/sm90/forward.cu"

namespace jax_na::cuda {

enum Fault {
  kNone,
  kWrongFullPhase,
  kWrongEmptyPhase,
  kBufferNotEmpty,
  kMissingRelease,
  kEarlyRelease,
  kTooFewReleases,
  kMissingFullWait,
  kMissingInitFence,
  kMissingPass,
  kMissingTurn,
};
int fault;

using Right = HopperShape<BF16Type, 32>;
struct Wrong : Right {};

template <>
struct TileRing<Wrong> : TileRing<Right> {
  __forceinline__ void init_barriers() const {
    for (int stage = 0; stage < Wrong::kStages; ++stage) {
      mbarrier_init(full(stage), 1);
      mbarrier_init(empty(stage), fault == kTooFewReleases ? 4 : 8);
    }
  }
  __forceinline__ void wait_full(int step) const {
    if (fault != kMissingFullWait) mbarrier_wait(full(step), parity(step) ^ (fault == kWrongFullPhase ? 1 : 0));
    if (fault == kEarlyRelease && threadIdx.x % 32 == 0) mbarrier_arrive(empty(step));
  }
  __forceinline__ void wait_empty(int step) const {
    if (fault != kBufferNotEmpty) mbarrier_wait(empty(step), parity(step) ^ (fault == kWrongEmptyPhase ? 0 : 1));
  }
  __forceinline__ void release(int step) const {
    if (fault != kMissingRelease && fault != kEarlyRelease) mbarrier_arrive(empty(step));
  }
};

template <>
struct HopperShared<Wrong> : HopperShared<Right> {
  __forceinline__ TileRing<Wrong> keys() const { return {HopperShared<Right>::keys()}; }
  __forceinline__ TileRing<Wrong> values() const { return {HopperShared<Right>::values()}; }
  __forceinline__ void init_barriers() const {
    mbarrier_init(query_full(), 1);
    keys().init_barriers();
    values().init_barriers();
    if (fault != kMissingInitFence) fence_mbarrier_init();
  }
};

template <>
struct Turns<Wrong> {
  int warpgroup, total;

  __forceinline__ void take(int step) const {
    if (fault != kMissingTurn || step != 2) Turns<Right>{warpgroup, total}.take(step);
  }
  __forceinline__ void pass(int step) const {
    if (fault != kMissingPass || step != 2) Turns<Right>{warpgroup, total}.pass(step);
  }
};

}  // namespace jax_na::cuda

// A sequence with one head of 32 features; what was found goes to `report`.
extern "C" void run(int planted, uint32_t seed, int length, int kernel_size, void* const* arrays, char* report,
                    int size) {
  using namespace jax_na::cuda;
  fault = planted;
  simt::reset();
  simt::set_seed(seed);
  const auto tokens = static_cast<size_t>(length);
  const size_t bytes[] = {8, 64 * tokens, 64 * tokens, 64 * tokens, 64 * tokens, 4 * tokens};
  const char* names[] = {"offsets", "query", "key", "value", "out", "lse"};
  for (int i = 0; i < 6; ++i) simt::register_buffer(arrays[i], bytes[i], names[i], i >= 4);
  jax_na::ForwardArgs a{};
  jax_na::Problem& p = a.problem;
  p.batch = p.rank = p.heads = p.kv_heads = 1;
  p.head_dim = p.value_dim = 32;
  p.scale = 0.25;
  for (int axis = 0; axis < jax_na::kAxes; ++axis) {
    const bool last = axis == jax_na::kAxes - 1;
    p.axis[axis] = {last ? length : 1, last ? kernel_size : 1, 1, 1, false};
    p.nq[axis] = p.nk[axis] = p.axis[axis].length;
    a.tiles.query[axis] = a.tiles.key[axis] = last ? 128 : 1;
  }
  a.offsets = static_cast<const int32_t*>(arrays[0]);
  a.query = arrays[1], a.key = arrays[2], a.value = arrays[3], a.out = arrays[4];
  a.lse = static_cast<float*>(arrays[5]);
  const char* refusal = launch_hopper_forward<Wrong>(a, nullptr);
  snprintf(report, static_cast<size_t>(size), "%s", refusal ? refusal : simt::findings() > 0 ? simt::report() : "");
}
