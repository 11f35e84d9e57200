// SPDX-License-Identifier: Apache-2.0
// Runs units of work on XLA's intra-op thread pool. The calling thread works too, so a call cannot deadlock when the
// handler itself occupies a pool thread: in the worst case the caller does everything.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "cpu/host/kernels.h"
#include "xla/ffi/api/ffi.h"

namespace jax_na {

class UnitQueue {
 public:
  UnitQueue(int64_t units, int workers, void (*body)(void*, int64_t, int), void* context)
      : units_(units), step_(std::max<int64_t>(1, units / (int64_t{workers} * 32))), body_(body), context_(context) {}

  // A helper that starts after the last unit was claimed returns without touching body or context, which may be gone.
  void work(int worker) {
    int64_t finished = 0;
    for (int64_t first; (first = next_.fetch_add(step_)) < units_;) {
      const int64_t last = std::min(first + step_, units_);
      for (int64_t unit = first; unit < last; ++unit) body_(context_, unit, worker);
      finished += last - first;
    }
    if (finished != 0 && done_.fetch_add(finished) + finished == units_) {
      std::lock_guard<std::mutex> lock(mutex_);
      all_done_.notify_all();
    }
  }

  // The last units of the others end soon: going to sleep and being woken again takes longer than most of them.
  void wait() {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point limit = Clock::now() + std::chrono::microseconds(20);
    while (done_.load() != units_ && Clock::now() < limit) std::this_thread::yield();
    if (done_.load() == units_) return;
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [this] { return done_.load() == units_; });
  }

 private:
  const int64_t units_, step_;
  void (*const body_)(void*, int64_t, int);
  void* const context_;
  std::atomic<int64_t> next_{0}, done_{0};
  std::mutex mutex_;
  std::condition_variable all_done_;
};

inline void run_on_pool(const Parallel& self, int64_t units, void (*body)(void*, int64_t, int), void* context) {
  if (units <= 0) return;
  const int workers = static_cast<int>(std::min<int64_t>(self.workers, units));
  if (workers <= 1) {
    for (int64_t unit = 0; unit < units; ++unit) body(context, unit, 0);
    return;
  }
  auto* pool = static_cast<xla::ffi::ThreadPool*>(self.pool);
  auto queue = std::make_shared<UnitQueue>(units, workers, body, context);
  for (int worker = 1; worker < workers; ++worker) pool->Schedule([queue, worker] { queue->work(worker); });
  queue->work(0);
  queue->wait();
}

// 30 to 70 us on one core: a wake-up takes 20 us of the caller, and the helper starts 50 to 100 us later.
constexpr double kSmallestSharedWork = 1e6;

// As many workers as the pool has threads and the scratch buffer has room for, but one for work not worth a wake-up.
inline Parallel make_parallel(xla::ffi::ThreadPool& pool, double flops, void* scratch, int64_t scratch_bytes,
                              int64_t scratch_per_worker) {
  const int64_t room = scratch_per_worker == 0 ? INT64_MAX : scratch_bytes / scratch_per_worker;
  const int64_t threads = flops < kSmallestSharedWork ? 1 : std::max<int64_t>(1, pool.num_threads());
  return {&pool, static_cast<int>(std::min(room, threads)), static_cast<char*>(scratch), scratch_per_worker,
          run_on_pool};
}

}  // namespace jax_na
