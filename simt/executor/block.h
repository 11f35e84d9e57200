// SPDX-License-Identifier: Apache-2.0
// The block that runs: its threads, who waits for what, and what each has seen of the others.
//
// A thread runs until it must wait; then another is chosen at random, of the same warp as long as one can run, so that
// warps drift as far apart as the kernel lets them.
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

#include "simt/executor/report.h"
#include "simt/executor/shadow.h"

namespace simt {

constexpr int kWarp = 32, kWarpgroup = 128;

// What a thread waits for; `object` and `detail` are what explain_wait needs to describe it.
struct Wait {
  enum Kind { kNothing, kCollective, kBarrier, kMbarrier, kRegisters } kind = kNothing;
  const char* name = "";
  Site site = nullptr;
  uint32_t object = 0, detail = 0;
};

struct Thread {
  void* stack = nullptr;  // where to continue
  bool finished = false;
  Wait wait;
};

struct Block {
  int threads = 0, current = 0, finished = 0;
  unsigned index = 0;
  uint32_t serial = 0, first_serial = 0;  // of all blocks ever run; of the first one of this launch
  std::vector<Thread> thread;
  std::vector<Clock> fenced;  // per thread: its time at its last fence_proxy_async
};
extern Block block;

// ---- running and waiting ----

void wait_for(const Wait& wait);  // the current thread, until somebody wakes it
void wake(int thread);
void wake(int first, int count);
uint32_t random_below(uint32_t n);
[[noreturn]] void leave_launch();

// ---- vector clocks ----

int slot_count();
int new_slot(const std::string& name);  // for something asynchronous in this block
std::string slot_name(int slot);
Clock* seen_by(int thread);
inline Clock& time_of(int thread) { return seen_by(thread)[thread]; }
void merge(Clock* into, const Clock* from);
void publish(Clock* into, int thread);         // what the thread has done and seen so far; its time moves on
void synchronise(int first, int count);        // all these threads see what any of them has seen
Access generic_access(bool write, Site site);  // by the current thread

// ---- collective instructions ----

struct Gathering {
  const char* name = "";  // of the instruction, and where the first thread reached it
  Site site = nullptr;
  int arrived = 0;
  void* operands[kWarpgroup];
};
// Adds the current thread to its warp's or warpgroup's collective; the gathering if it is complete now.
Gathering* arrive(int lanes, const char* name, Site site, void* operands);

// A collective of kLanes threads: each brings its operands, the last one to come runs body(Operands* of each lane).
template <int kLanes, class Operands, class Body>
void collective(const char* name, Site site, Operands& mine, const Body& body) {
  if (Gathering* g = arrive(kLanes, name, site, &mine)) {
    Operands* all[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) all[lane] = static_cast<Operands*>(g->operands[lane]);
    body(all);
    wake(block.current / kLanes * kLanes, kLanes);
  } else {
    wait_for({Wait::kCollective, name, site});
  }
}

// The same without operands.
template <int kLanes, class Body>
void collective(const char* name, Site site, const Body& body) {
  char none;
  collective<kLanes>(name, site, none, [&](char**) { body(); });
}

// ---- what the other files keep of a block: renewed when it begins, checked when it ends ----

void begin_clocks();
void begin_barriers();
void begin_cp_async();
void end_cp_async();
std::string explain_barrier(uint32_t id);

}  // namespace simt
