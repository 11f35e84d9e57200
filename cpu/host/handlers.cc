// SPDX-License-Identifier: Apache-2.0
// XLA FFI handlers: decode the buffers, choose the kernel, run it. What Python cannot check, run-time offsets and the
// kernels of this machine's instruction set, is checked here alone.
#include "cpu/host/handlers.h"

#include "common/call/choice.h"
#include "common/call/decode.h"
#include "cpu/host/instruction_set.h"
#include "cpu/host/pages.h"
#include "cpu/host/thread_pool.h"

namespace jax_na {
namespace {

std::string interval(int64_t first, int64_t count) {
  return "[" + std::to_string(first) + ", " + std::to_string(first + count) + ")";
}

// Where the region lies, and whether all its windows are there.
ffi::Error place_region(Call& call) {
  Problem& p = call.query.problem;
  const void* offsets = call.data[static_cast<int>(Operand::kOffsets)];
  if (offsets == nullptr) return ffi::Error::Success();
  place(p, static_cast<const int32_t*>(offsets));
  for (int a = 0; a < kAxes; ++a)
    if (!windows_present(p, a))
      return refuse(call.target, "on axis " + std::to_string(a - (kAxes - p.rank)) + " the windows of the queries " +
                                     interval(p.q0[a], p.nq[a]) + " reach beyond the keys " +
                                     interval(p.k0[a], p.nk[a]) + " of an axis of length " +
                                     std::to_string(p.axis[a].length));
  return ffi::Error::Success();
}

// Operations of a call, as kSmallestSharedWork counts them.
double work(const Call& call) {
  const Problem& p = call.query.problem;
  const double rows = static_cast<double>(p.batch) * p.heads * query_tokens(p);
  constexpr double kExponential = 20;
  switch (call.target) {
    case Target::kFusedForward:
      return 2 * rows * slots(p) * (p.head_dim + p.value_dim);
    case Target::kFusedBackward:
      return 5 * rows * slots(p) * (p.head_dim + p.value_dim);
    case Target::kSoftmax:
      return kExponential * rows * p.pitch;
    default:
      return 2 * rows * slots(p) * p.value_dim;
  }
}

// Results are about to be written.
void expect_writes(const Call& call) {
  const Operands results = array_signature(call.target).results;
  for (int i = 0; i < kOperands; ++i)
    if (has(results, static_cast<Operand>(i)) && call.data[i] != nullptr)
      advise_huge_pages(call.data[i], static_cast<size_t>(call.bytes[i]));
}

void run(const CpuVariant& row, const Call& call, const Parallel& parallel) {
  if (call.target == Target::kFusedForward) {
    const ForwardArgs args = forward_args(call);
    row.run(&args, parallel);
  } else if (call.target == Target::kFusedBackward) {
    const BackwardArgs args = backward_args(call);
    row.run(&args, parallel);
  } else if (call.target == Target::kSoftmax) {
    const SoftmaxArgs args = softmax_args(call);
    row.run(&args, parallel);
  } else {
    const UnfusedArgs args = unfused_args(call);
    row.run(&args, parallel);
  }
}

ffi::Error run_call(Target target, ffi::ThreadPool& pool, const ffi::RemainingArgs& args,
                    const ffi::RemainingRets& rets, const Attributes& attributes) {
  Call call{};
  if (ffi::Error error = decode(kCpu, target, attributes, args, rets, call); error.failure()) return error;
  if (ffi::Error error = place_region(call); error.failure()) return error;
  const Table<CpuVariant> rows = best_rows();
  const PassList passes = passes_of(rows, target);  // one
  std::string_view choices;
  if (!part_of_pass(attributes.kernels, 0, passes.count, choices))
    return refuse(target, "kernels=\"" + std::string(attributes.kernels) + "\" is for another number of passes than " +
                              std::to_string(passes.count));
  Chosen<CpuVariant> chosen{};
  const auto nothing_else = [](const CpuVariant&, const Tiles&, Text&) {};
  const std::string reason = choose(rows, {target, passes.pass[0], choices}, call.query, nothing_else, chosen);
  if (!reason.empty()) return refuse(target, reason);

  Problem& p = call.query.problem;
  p = with_tile(call.query, chosen.tiles.query);
  const int scratch = static_cast<int>(Operand::kScratch);
  const int64_t per_worker = chosen.row->scratch(p);
  const Parallel parallel =
      make_parallel(pool, work(call) * chosen.row->cost, call.data[scratch], call.bytes[scratch], per_worker);
  if (parallel.workers < 1)
    return refuse(target, "scratch has " + std::to_string(call.bytes[scratch]) + " bytes; each worker needs " +
                              std::to_string(per_worker));
  expect_writes(call);
  run(*chosen.row, call, parallel);
  return ffi::Error::Success();
}

template <int target>
XLA_FFI_Error* handle(XLA_FFI_CallFrame* frame) {
  static const auto* const handler =
      ffi::Ffi::Bind()
          .Ctx<ffi::ThreadPool>()
          .RemainingArgs()
          .RemainingRets()
          .Attrs<Attributes>()
          .To([](ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, const Attributes& attributes) {
            return run_call(static_cast<Target>(target), pool, args, rets, attributes);
          })
          .release();
  return handler->Call(frame);
}

template <int... targets>
XLA_FFI_Handler* handler_of(int target, std::integer_sequence<int, targets...>) {
  constexpr XLA_FFI_Handler* kHandlers[] = {handle<targets>...};
  return kHandlers[target];
}

}  // namespace

XLA_FFI_Handler* handler(Target target) {
  return handler_of(static_cast<int>(target), std::make_integer_sequence<int, kTargets>{});
}

}  // namespace jax_na
