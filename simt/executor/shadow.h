// SPDX-License-Identifier: Apache-2.0
// Who touched which byte last: the race detector.
//
// Every thread counts its own time, and its vector clock says up to which time of every other thread it has seen
// what that one did; synchronising merges clocks. Two accesses of which one writes are a race unless the later one's
// thread had seen the earlier one. Asynchronous copies and products have clock slots of their own, which a thread sees
// by waiting for them.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <string>
#include <vector>

#include "simt/executor/report.h"

namespace simt {

using Clock = uint32_t;
constexpr Clock kInFlight = UINT32_MAX;  // a time that nobody has seen, not even the thread itself

// How the 16-byte chunks of a row lie in shared memory; the numbers are those of matrix descriptors, and kAny.
constexpr uint8_t kAnySwizzle = 255;

struct Access {
  bool write;
  bool async;         // by the asynchronous proxy: tensor copies and wgmma
  int slot;           // clock slot that the access is charged to
  Clock clock;        // its time there
  const Clock* seen;  // what happened before it
  Site site;
  uint8_t swizzle = kAnySwizzle;
};

class Shadow {
 public:
  // `shared` memory is new in every block, and void until written; global memory is one for all the blocks of a launch.
  Shadow(std::string name, size_t bytes, bool shared)
      : name_(std::move(name)), shared_(shared), granules_((bytes + kGranule - 1) / kGranule) {}

  void access(size_t offset, size_t bytes, const Access& access);

  // An asynchronous write of `thread` that was in flight is now one at time `clock`.
  void land(size_t offset, size_t bytes, int thread, Clock clock);

 private:
  static constexpr size_t kGranule = 16;
  struct Read {
    int slot;
    Clock clock;
    Site site;
  };
  struct Cell {
    uint32_t block = 0;  // serial number of the block whose accesses these are
    bool written = false, async = false;
    uint8_t swizzle = kAnySwizzle;
    int writer = 0;
    Clock clock = 0;
    Site site = nullptr;
    std::vector<Read> reads;  // since the write, none of which had seen another
  };
  // 16 bytes, which mostly have one history; else each has its own.
  struct Granule {
    Cell whole;
    std::unique_ptr<Cell[]> bytes;
    bool split = false;
  };

  void touch(Cell& cell, size_t offset, const Access& access);
  void check_order(const Cell& cell, size_t offset, const Access& access) const;
  void report(const char* kind, size_t offset, const Access& access, const char* earlier, int slot, Site site) const;

  std::string name_;
  bool shared_;
  std::vector<Granule> granules_;
};

}  // namespace simt
