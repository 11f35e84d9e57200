// SPDX-License-Identifier: Apache-2.0
// What the scheduler must know of the instructions of compute capability 9.0.
#pragma once

#include <stdint.h>

#include <string>

namespace simt {

void begin_mbarriers();
void begin_tensor_copies();
void end_tensor_copies();
void begin_wgmma();
void end_wgmma();
bool land_a_copy();  // completes one of the tensor copies under way, whichever; false if there is none
std::string explain_mbarrier(uint32_t address, uint32_t parity);

}  // namespace simt
