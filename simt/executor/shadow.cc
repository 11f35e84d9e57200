// SPDX-License-Identifier: Apache-2.0
#include "simt/executor/shadow.h"

#include <algorithm>

#include "simt/executor/block.h"

namespace simt {

void Shadow::access(size_t offset, size_t bytes, const Access& access) {
  const size_t end = offset + bytes;
  for (size_t at = offset; at < end;) {
    Granule& granule = granules_[at / kGranule];
    const size_t first = at % kGranule, stop = std::min(end, at - first + kGranule);
    const bool all = stop - at == kGranule;
    if (!all && !granule.split) {
      if (!granule.bytes) granule.bytes = std::make_unique<Cell[]>(kGranule);
      std::fill_n(granule.bytes.get(), kGranule, granule.whole);
      granule.split = true;
    }
    if (granule.split) {
      for (size_t i = at; i < stop; ++i) touch(granule.bytes[i % kGranule], i, access);
      if (all && access.write) {  // one history again
        granule.whole = granule.bytes[0];
        granule.split = false;
      }
    } else {
      touch(granule.whole, at, access);
    }
    at = stop;
  }
}

void Shadow::touch(Cell& cell, size_t offset, const Access& access) {
  if (cell.block != block.serial) {
    const bool same_launch = !shared_ && cell.block >= block.first_serial;
    if (same_launch && cell.written)
      report("race between blocks", offset, access, "write in an earlier block", cell.writer, cell.site);
    if (same_launch && access.write && !cell.reads.empty())
      report("race between blocks", offset, access, "read in an earlier block", cell.reads[0].slot, cell.reads[0].site);
    cell.block = block.serial;
    cell.written = false;
    cell.reads.clear();
  }
  check_order(cell, offset, access);
  if (access.write) {
    cell.written = true;
    cell.async = access.async;
    cell.swizzle = access.swizzle;
    cell.writer = access.slot;
    cell.clock = access.clock;
    cell.site = access.site;
    cell.reads.clear();
    return;
  }
  // A read that this one has seen says nothing more: whoever has not seen that one has not seen this one either.
  auto seen = [&](const Read& r) { return r.clock <= access.seen[r.slot] || r.slot == access.slot; };
  cell.reads.erase(std::remove_if(cell.reads.begin(), cell.reads.end(), seen), cell.reads.end());
  cell.reads.push_back({access.slot, access.clock, access.site});
}

void Shadow::check_order(const Cell& cell, size_t offset, const Access& access) const {
  if (shared_ && !access.write && !cell.written)
    record("uninitialised shared memory", text("read of %s + 0x%zx in block %u", name_.c_str(), offset, block.index),
           {{"read by " + slot_name(access.slot), access.site}});
  if (cell.written && access.seen[cell.writer] < cell.clock) {
    report("race", offset, access, cell.clock == kInFlight ? "asynchronous write not waited for" : "write", cell.writer,
           cell.site);
  } else if (access.async && cell.written && !cell.async && block.fenced[cell.writer] < cell.clock) {
    report("missing fence_proxy_async", offset, access, "write without a fence after it", cell.writer, cell.site);
  }
  if (cell.written && !access.write && access.swizzle != kAnySwizzle && cell.swizzle != kAnySwizzle &&
      access.swizzle != cell.swizzle)
    report("wrong swizzle", offset, access, "write with another swizzle", cell.writer, cell.site);
  if (!access.write) return;
  for (const Read& read : cell.reads)
    if (access.seen[read.slot] < read.clock) report("race", offset, access, "read", read.slot, read.site);
}

void Shadow::report(const char* kind, size_t offset, const Access& access, const char* earlier, int slot,
                    Site site) const {
  record(kind, text("%s + 0x%zx in block %u", name_.c_str(), offset, block.index),
         {{(access.write ? "write by " : "read by ") + slot_name(access.slot), access.site},
          {std::string(earlier) + " by " + slot_name(slot), site}});
}

void Shadow::land(size_t offset, size_t bytes, int thread, Clock clock) {
  for (size_t i = offset; i < offset + bytes; ++i) {
    Granule& granule = granules_[i / kGranule];
    Cell& cell = granule.split ? granule.bytes[i % kGranule] : granule.whole;
    if (cell.writer == thread && cell.clock == kInFlight) cell.clock = clock;
  }
}

}  // namespace simt
