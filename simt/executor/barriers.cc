// SPDX-License-Identifier: Apache-2.0
// Barriers of the block (bar.sync, bar.arrive, __syncthreads) and of the warp; registers that warpgroups hand over.
#include <map>

#include "simt/executor/block.h"
#include "simt/executor/executor_sm90.h"

namespace simt {
namespace {

constexpr uint32_t kBarriers = 16;

struct Barrier {
  int expected = 0, arrived = 0;
  std::vector<Clock> published;           // by those that arrived
  std::vector<std::pair<int, Site>> who;  // threads that arrived, and where
  std::vector<int> waiting;
};
Barrier barriers[kBarriers];

// A barrier counts warps, and takes their threads to arrive together.
void check_warps(const Barrier& b) {
  std::map<int, std::vector<std::pair<int, Site>>> warps;
  for (const auto& arrival : b.who) warps[arrival.first / kWarp].push_back(arrival);
  for (const auto& [warp, lanes] : warps) {
    const Site site = lanes[0].second;
    if (lanes.size() % kWarp != 0)
      record("divergent barrier", text("%zu threads of warp %d in block %u", lanes.size(), warp, block.index),
             {{"arrived", site}});
    for (const auto& [thread, other] : lanes)
      if (lanes.size() == kWarp && !same_line(site, other))
        record("divergent barrier", text("warp %d in block %u", warp, block.index),
               {{text("thread %d", lanes[0].first), site}, {text("thread %d", thread), other}});
  }
}

void release(Barrier& b) {
  check_warps(b);
  for (const int thread : b.waiting) {
    merge(seen_by(thread), b.published.data());
    wake(thread);
  }
  b = {};
}

void arrive_at(uint32_t id, int expected, bool waits, Site site) {
  const int self = block.current;
  const std::string where = text("barrier %u, %d threads, in block %u", id, expected, block.index);
  if (id >= kBarriers || expected <= 0 || expected > block.threads || expected % kWarp != 0)
    fail("illegal barrier", where, {{text("thread %d", self), site}});
  Barrier& b = barriers[id];
  if (b.arrived == 0) {
    b.expected = expected;
    b.published.assign(slot_count(), 0);
  }
  if (b.expected != expected)
    fail("barrier with different counts", where,
         {{text("thread %d", self), site}, {text("thread %d with %d", b.who[0].first, b.expected), b.who[0].second}});
  publish(b.published.data(), self);
  b.who.emplace_back(self, site);
  if (waits) b.waiting.push_back(self);
  if (++b.arrived == expected) return release(b);
  if (waits) wait_for({Wait::kBarrier, "barrier", site, id});
}

constexpr int kRegistersOfBlock = 64 << 10;
std::vector<int> registers;         // per thread of each warpgroup
std::vector<int> waiting_for_more;  // threads

// What the compiler may give every thread of a block that has a multiprocessor to itself.
int initial_registers() { return kRegistersOfBlock / block.threads / 8 * 8; }

bool registers_fit() {
  int sum = 0;
  for (const int r : registers) sum += r * kWarpgroup;
  return sum <= kRegistersOfBlock;
}

}  // namespace

void begin_barriers() {
  for (Barrier& b : barriers) b = {};
  registers.assign(block.threads / kWarpgroup, initial_registers());
  waiting_for_more.clear();
}

std::string explain_barrier(uint32_t id) {
  return text("at barrier %u, %d of %d threads are there", id, barriers[id].arrived, barriers[id].expected);
}

void block_sync() { arrive_at(0, block.threads, true, __builtin_return_address(0)); }

void named_barrier_sync(int id, int threads) {
  arrive_at(static_cast<uint32_t>(id), threads, true, __builtin_return_address(0));
}
void named_barrier_arrive(int id, int threads) {
  arrive_at(static_cast<uint32_t>(id), threads, false, __builtin_return_address(0));
}

void warp_sync() {
  collective<kWarp>("warp_sync", __builtin_return_address(0),
                    [] { synchronise(block.current / kWarp * kWarp, kWarp); });
}

void set_max_registers(int count, bool increase) {
  const Site site = __builtin_return_address(0);
  collective<kWarpgroup>("set_max_registers", site, [&] {
    registers[block.current / kWarpgroup] = count;
    for (const int thread : waiting_for_more) wake(thread);
    waiting_for_more.clear();
  });
  while (increase && !registers_fit()) {
    waiting_for_more.push_back(block.current);
    wait_for({Wait::kRegisters, "set_max_registers", site, 0, static_cast<uint32_t>(count)});
  }
}

}  // namespace simt
