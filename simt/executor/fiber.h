// SPDX-License-Identifier: Apache-2.0
// Fibers: many call stacks on one thread of the operating system, switched by hand.
#pragma once

#include <stdint.h>
#include <string.h>

namespace simt {

// Saves the registers that a call preserves on the current stack, its top in *save, and continues on the stack `load`.
extern "C" void simt_switch_stacks(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
  .text
  .globl simt_switch_stacks
  .hidden simt_switch_stacks
simt_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
constexpr int kSavedWords = 6, kEntryWord = 6;  // the return address follows the registers
constexpr int kFrameWords = 8;                  // and a null one keeps the stack aligned as after a call
#elif defined(__aarch64__)
asm(R"(
  .text
  .globl simt_switch_stacks
  .hidden simt_switch_stacks
simt_switch_stacks:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr int kSavedWords = 20, kEntryWord = 11;  // x30, where the return goes
constexpr int kFrameWords = 20;
#else
#error "the executor switches stacks on x86-64 and aarch64 only"
#endif

// What simt_switch_stacks can load to begin `entry` on an empty stack that ends at `top`.
inline void* new_stack(char* top, void (*entry)()) {
  void** frame = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15}) - kFrameWords;
  memset(frame, 0, kFrameWords * sizeof(void*));
  frame[kEntryWord] = reinterpret_cast<void*>(entry);
  return frame;
}

}  // namespace simt
