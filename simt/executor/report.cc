// SPDX-License-Identifier: Apache-2.0
#include "simt/executor/report.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <map>

#include "simt/executor/executor.h"

namespace simt {
namespace {

constexpr size_t kMostFindings = 100;

struct Finding {
  std::string kind, details;
  std::vector<Place> places;
  int count;
};
std::vector<Finding> all;
std::string report_text;

// The files that only pass calls on to the executor: a reader wants the line of the kernel.
bool is_wrapper(const std::string& line) { return line.rfind("device.h:", 0) == 0 || line.rfind("sm90.h:", 0) == 0; }

// "tile.cuh:31 < fused.cuh:120": the line, then those of the functions that it was inlined into.
std::map<Site, std::string> source_lines;

// addr2line answers with the address, then for each inlined function a line "file:line" from the inside out.
void read_lines(FILE* answer, const std::map<uintptr_t, Site>& sites) {
  char buffer[4096];
  std::string* entry = nullptr;
  while (fgets(buffer, sizeof buffer, answer)) {
    std::string line(buffer, strcspn(buffer, "\n"));
    if (line.rfind("0x", 0) == 0) {
      const auto site = sites.find(strtoull(line.c_str(), nullptr, 16));
      entry = site == sites.end() ? nullptr : &source_lines[site->second];
      continue;
    }
    line = line.substr(0, line.find(" ("));  // without (discriminator 2), (inlined by)
    if (!entry || is_wrapper(line) || line[0] == '?') continue;
    *entry = entry->rfind("0x", 0) == 0 ? line : *entry + " < " + line;
  }
}

// Looks up all the sites that are not known yet, with one call of addr2line per library.
void look_up(const std::vector<Site>& sites) {
  std::map<std::string, std::map<uintptr_t, Site>> unknown;  // library -> address in it -> site
  for (const Site site : sites) {
    Dl_info library;
    if (!site || source_lines.count(site)) continue;
    source_lines[site] = text("%p", site);  // unless more is known
    if (!dladdr(site, &library)) continue;
    // The call precedes the address it returns to.
    const uintptr_t address = reinterpret_cast<uintptr_t>(site) - reinterpret_cast<uintptr_t>(library.dli_fbase) - 1;
    unknown[library.dli_fname][address] = site;
  }
  for (const auto& [library, addresses] : unknown) {
    std::string command = "addr2line -a -i -s -e '" + library + "'";
    for (const auto& [address, site] : addresses) command += text(" 0x%zx", static_cast<size_t>(address));
    if (FILE* answer = popen((command + " 2>/dev/null").c_str(), "r")) {
      read_lines(answer, addresses);
      pclose(answer);
    }
  }
}

}  // namespace

void record(const char* kind, const std::string& details, const std::vector<Place>& places) {
  for (Finding& f : all) {
    bool same = f.kind == kind && f.places.size() == places.size();
    for (size_t i = 0; same && i < places.size(); ++i) same = f.places[i].site == places[i].site;
    if (same) {
      ++f.count;
      return;
    }
  }
  if (all.size() < kMostFindings) all.push_back({kind, details, places, 1});
}

bool same_line(Site a, Site b) {
  if (a == b) return true;
  look_up({a, b});
  return source_lines[a] == source_lines[b];
}

std::string text(const char* format, ...) {
  char buffer[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

int findings() { return static_cast<int>(all.size()); }

const char* report() {
  std::vector<Site> sites;
  for (const Finding& f : all)
    for (const Place& place : f.places) sites.push_back(place.site);
  look_up(sites);
  report_text.clear();
  for (const Finding& f : all) {
    report_text += f.kind + ": " + f.details + (f.count > 1 ? text(" (%d times)", f.count) : "") + "\n";
    for (const Place& place : f.places)
      report_text += "    " + place.text + (place.site ? ": " + source_lines[place.site] : "") + "\n";
  }
  return report_text.c_str();
}

void forget_findings() { all.clear(); }

}  // namespace simt
