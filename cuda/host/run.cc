// SPDX-License-Identifier: Apache-2.0
#include "cuda/host/run.h"

namespace jax_na::cuda {
namespace {

// Chooses the kernel of every pass before the first is enqueued.
template <class Args>
std::string run_passes(const Call& call, Args args, std::string_view choices, Stream stream, const char*& failure) {
  const Table<CudaVariant> rows = kernels();
  const PassList passes = passes_of(rows, call.target);
  Chosen<CudaVariant> chosen[kPasses];
  const auto late = [&](const CudaVariant& row, const Tiles&, Text& text) {
    if (row.late_obstacle != nullptr) row.late_obstacle(&args, text);
  };
  for (int i = 0; i < passes.count; ++i) {
    std::string_view part;
    if (!part_of_pass(choices, i, passes.count, part))
      return "kernels=\"" + std::string(choices) + "\" must have " + std::to_string(passes.count) +
             " parts, one for each pass";
    std::string reason = choose(rows, {call.target, passes.pass[i], part}, call.query, late, chosen[i]);
    if (!reason.empty()) return reason;
  }
  for (int i = 0; i < passes.count && failure == nullptr; ++i) {
    args.tiles = chosen[i].tiles;
    failure = chosen[i].row->run(&args, stream);
  }
  return "";
}

}  // namespace

std::string run(const Call& call, std::string_view choices, Stream stream, const char*& failure) {
  failure = nullptr;
  if (call.target == Target::kFusedForward) return run_passes(call, forward_args(call), choices, stream, failure);
  if (call.target == Target::kFusedBackward) return run_passes(call, backward_args(call), choices, stream, failure);
  return run_passes(call, unfused_args(call), choices, stream, failure);
}

}  // namespace jax_na::cuda
