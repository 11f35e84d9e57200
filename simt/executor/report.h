// SPDX-License-Identifier: Apache-2.0
// Findings: what is wrong with a kernel, and at which lines of its source.
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

namespace simt {

// Where a kernel called the executor: a return address. Source lines are looked up only when a report asks for them.
using Site = const void*;

// A line of a finding: what happened at a site. A null site is a line without one.
struct Place {
  std::string text;
  Site site;
};

// Records a finding. Those of the same kind at the same sites count as one, described by the first.
void record(const char* kind, const std::string& details, const std::vector<Place>& places);

// The same, after which the kernel cannot go on: the launch ends here.
[[noreturn]] void fail(const char* kind, const std::string& details, const std::vector<Place>& places);

// Two sites on the same source lines? The compiler may have copied an instruction, for instance to unroll a loop.
bool same_line(Site a, Site b);

// printf into a string.
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace simt
