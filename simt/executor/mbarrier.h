// SPDX-License-Identifier: Apache-2.0
// Barriers in shared memory, as tensor copies see them.
#pragma once

#include "simt/executor/block.h"

namespace simt {

// The clock slot that copies completing on a barrier are charged to, and their time there: its current phase.
struct Completion {
  int slot;
  Clock clock;
};
Completion completion_of(uint32_t barrier, Site site);
void complete_bytes(uint32_t barrier, int bytes);

void fence_mbarriers();  // the current thread's fence for the asynchronous proxy

}  // namespace simt
