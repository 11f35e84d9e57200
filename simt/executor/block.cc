// SPDX-License-Identifier: Apache-2.0
#include "simt/executor/block.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "simt/executor/executor.h"
#include "simt/executor/fiber.h"
#include "simt/executor/memory.h"
#include "simt/executor/schedule_sm90.h"

namespace simt {

Block block;
Dim3 thread_index, block_index, block_dimension{1, 1, 1}, grid_dimension{1, 1, 1};

namespace {

constexpr size_t kStackBytes = 256 << 10;

uint64_t random_state = 1;
uint32_t ready[32];    // lanes of each warp that can run
uint32_t ready_warps;  // warps with such lanes
void* launcher;        // stack of the thread that launched
bool stopped;
void (*kernel)(const void*);
const void* kernel_argument;
Gathering warp_gathering[32], warpgroup_gathering[8];

uint32_t random_bits() {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return static_cast<uint32_t>(random_state * 0x2545f4914f6cdd1dull >> 32);
}

int random_bit(uint32_t mask) {  // the number of one of its bits
  const uint32_t turn = random_bits() & 31, turned = mask >> turn | mask << (-turn & 31);
  return static_cast<int>((static_cast<uint32_t>(__builtin_ctz(turned)) + turn) & 31);
}

std::string explain_wait(const Wait& wait) {
  switch (wait.kind) {
    case Wait::kBarrier:
      return explain_barrier(wait.object);
    case Wait::kMbarrier:
      return explain_mbarrier(wait.object, wait.detail);
    case Wait::kRegisters:
      return text("for %u registers per thread, which no other warpgroup gives up", wait.detail);
    default:
      return text("for the other threads at %s", wait.name);
  }
}

// All the threads that are left wait: who, where and for what.
[[noreturn]] void deadlock() {
  std::vector<Place> places;
  std::map<std::pair<std::string, Site>, std::string> groups;
  for (int warp_index = 0; warp_index < block.threads / kWarp; ++warp_index) {
    std::map<std::pair<std::string, Site>, int> lanes;
    for (int lane = 0; lane < kWarp; ++lane) {
      const Thread& t = block.thread[warp_index * kWarp + lane];
      ++lanes[t.finished ? std::make_pair(std::string(), Site{}) : std::make_pair(explain_wait(t.wait), t.wait.site)];
    }
    for (const auto& [what, count] : lanes) groups[what] += text(" %d (%d threads)", warp_index, count);
  }
  for (const auto& [what, warps] : groups)
    places.push_back({"warps" + warps + (what.second ? " wait " + what.first : " have left the kernel"), what.second});
  fail("deadlock", text("in block %u", block.index), places);
}

int next_thread() {
  for (;;) {
    int warp = block.current / kWarp;
    if (!ready[warp] || random_bits() % 16 == 0) {
      if (random_bits() % 4 == 0) land_a_copy();
      warp = ready_warps ? random_bit(ready_warps) : -1;
    }
    if (warp >= 0 && ready[warp]) return warp * kWarp + random_bit(ready[warp]);
    if (!land_a_copy()) deadlock();
  }
}

void switch_to(int thread) {
  void** save = &block.thread[block.current].stack;
  block.current = thread;
  thread_index.x = static_cast<unsigned>(thread);
  simt_switch_stacks(save, block.thread[thread].stack);
}

void sleep(int thread) {
  const int warp = thread / kWarp;
  ready[warp] &= ~(1u << thread % kWarp);
  if (!ready[warp]) ready_warps &= ~(1u << warp);
}

void thread_body() {
  kernel(kernel_argument);
  block.thread[block.current].finished = true;
  sleep(block.current);
  if (++block.finished == block.threads) leave_launch();
  switch_to(next_thread());
}

// One stack per thread, each with a page below it that must not be touched.
char* stacks(int threads) {
  static char* begin = nullptr;
  static int count = 0;
  if (count >= threads) return begin;
  if (begin) munmap(begin, count * kStackBytes);
  count = threads;
  begin = static_cast<char*>(
      mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  for (int i = 0; i < count; ++i) mprotect(begin + i * kStackBytes, static_cast<size_t>(getpagesize()), PROT_NONE);
  set_stacks(begin, count * kStackBytes);
  return begin;
}

void begin_block(unsigned index) {
  block.index = block_index.x = index;
  ++block.serial;
  block.finished = 0;
  block.thread.assign(block.threads, {});
  begin_clocks();
  begin_barriers();
  begin_cp_async();
  begin_mbarriers();
  begin_tensor_copies();
  begin_wgmma();
  char* stack = stacks(block.threads);
  for (int t = 0; t < block.threads; ++t) {
    block.thread[t].stack = new_stack(stack + (t + 1) * kStackBytes, thread_body);
    wake(t);
  }
  for (Gathering& g : warp_gathering) g.arrived = 0;
  for (Gathering& g : warpgroup_gathering) g.arrived = 0;
}

void run_block() {
  set_running(true);
  block.current = next_thread();
  thread_index.x = static_cast<unsigned>(block.current);
  simt_switch_stacks(&launcher, block.thread[block.current].stack);
  set_running(false);
}

}  // namespace

void set_seed(uint32_t seed) { random_state = seed * 0x9e3779b97f4a7c15ull + 1; }
uint32_t random_below(uint32_t n) { return random_bits() % n; }

void run(unsigned blocks, unsigned threads, int shared_bytes, void (*body)(const void*), const void* argument) {
  kernel = body;
  kernel_argument = argument;
  block.threads = static_cast<int>(threads);
  block.first_serial = block.serial + 1;
  block_dimension.x = threads;
  grid_dimension.x = blocks;
  stopped = false;
  for (unsigned index = 0; index < blocks && !stopped; ++index) {
    begin_shared(static_cast<size_t>(shared_bytes));
    std::fill_n(ready, 32, 0u);
    ready_warps = 0;
    begin_block(index);
    run_block();
    if (stopped) break;
    end_cp_async();
    end_tensor_copies();
    end_wgmma();
  }
}

void leave_launch() {
  void* abandoned;
  simt_switch_stacks(&abandoned, launcher);
  __builtin_unreachable();
}

void fail(const char* kind, const std::string& details, const std::vector<Place>& places) {
  record(kind, details, places);
  stopped = true;
  leave_launch();
}

void wait_for(const Wait& wait) {
  const int self = block.current;
  block.thread[self].wait = wait;
  sleep(self);
  const int next = next_thread();
  if (next != self) switch_to(next);
}

void wake(int thread) {
  ready[thread / kWarp] |= 1u << thread % kWarp;
  ready_warps |= 1u << thread / kWarp;
}
void wake(int first, int count) {
  for (int t = first; t < first + count; ++t) wake(t);
}

Gathering* arrive(int lanes, const char* name, Site site, void* operands) {
  const int self = block.current, group = self / lanes;
  if ((group + 1) * lanes > block.threads) fail("no complete warpgroup", name, {{"called", site}});
  Gathering& g = (lanes == kWarp ? warp_gathering : warpgroup_gathering)[group];
  if (g.arrived == 0) {
    g.name = name;
    g.site = site;
  } else if (strcmp(g.name, name) != 0 || !same_line(g.site, site)) {
    fail("divergent collective", text("in block %u", block.index),
         {{text("thread %d at %s", self, name), site}, {text("another thread of its group at %s", g.name), g.site}});
  }
  g.operands[self % lanes] = operands;
  if (++g.arrived < lanes) return nullptr;
  g.arrived = 0;
  return &g;
}

}  // namespace simt
