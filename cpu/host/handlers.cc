// SPDX-License-Identifier: Apache-2.0
// XLA FFI handlers: decode the buffers into a Problem, check it, call the kernel for this machine's
// instruction set. What Python cannot check, a run-time offset, is checked here alone.
#include "cpu/host/handlers.h"

#include "cpu/host/decode.h"
#include "cpu/host/pages.h"
#include "cpu/host/thread_pool.h"

namespace jax_na {
namespace {

void expect_writes(ffi::AnyBuffer result) { advise_huge_pages(result.untyped_data(), result.size_bytes()); }

double pairs(const Problem& p) { return static_cast<double>(p.batch) * p.heads * query_tokens(p) * slots(p); }

enum class Family { kNaive, kGemm };

constexpr double kExponentialCost = 20;  // operations
constexpr double kNaiveCost = 10;        // time for one operation of its loops, relative to the other kernels

UnfusedKernel kernel_for(Family family, Unfused operation) {
  const Kernels& kernels = best_kernels();
  if (operation == Unfused::kQk) return family == Family::kNaive ? naive_qk : kernels.gemm_qk;
  if (operation == Unfused::kAv) return family == Family::kNaive ? naive_av : kernels.gemm_av;
  return family == Family::kNaive ? naive_inverse : kernels.gemm_inverse;
}

ffi::Error run_unfused(Family family, Unfused operation, ffi::ThreadPool& pool, const UnfusedArgs& args,
                       ffi::Result<ffi::AnyBuffer> scratch) {
  const Problem& p = args.problem;
  const double work = 2 * pairs(p) * p.value_dim * (family == Family::kNaive ? kNaiveCost : 1);
  const int64_t per_worker = family == Family::kNaive ? 0 : best_kernels().gemm_scratch(p);
  const Parallel parallel =
      make_parallel(pool, work, scratch->untyped_data(), static_cast<int64_t>(scratch->element_count()), per_worker);
  if (parallel.workers < 1) return invalid("the scratch buffer is too small");
  kernel_for(family, operation)(args, parallel);
  return ffi::Error::Success();
}

template <Family family, Unfused operation>
ffi::Error unfused(ffi::ThreadPool pool, ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Buffer<ffi::S32> offsets,
                   ffi::Result<ffi::AnyBuffer> result, ffi::Result<ffi::AnyBuffer> scratch,
                   const Attributes& attributes) {
  const size_t rank = attributes.kernel_size.size();
  UnfusedArrays arrays{};
  UnfusedArgs args{};
  Problem& p = args.problem;
  if (ffi::Error error = decode_unfused(operation, rank, first, second, *result, arrays); error.failure()) return error;
  if (ffi::Error error = make_problem(attributes, arrays, p); error.failure()) return error;
  if (ffi::Error error = check_offsets(offsets, rank); error.failure()) return error;
  if (ffi::Error error = place_region(offsets.typed_data(), p); error.failure()) return error;
  if (family == Family::kGemm) {
    constexpr Pass kPasses[] = {Pass::kQk, Pass::kAv, Pass::kInverse};
    if (arrays.dtype == DType::kFloat64) return invalid("the gemm kernels have no float64");
    if (ffi::Error error = decode_tile(attributes.tile, kPasses[static_cast<int>(operation)], p); error.failure())
      return error;
  }
  args.dtype = arrays.dtype;
  args.weights = arrays.weights, args.x = arrays.x_data, args.y = arrays.y_data;
  expect_writes(*result);
  return run_unfused(family, operation, pool, args, scratch);
}

auto unfused_binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::Buffer<ffi::S32>>()
      .Ret<ffi::AnyBuffer>()
      .Ret<ffi::AnyBuffer>()
      .Attrs<Attributes>();
}

ffi::Error decode_fused(const Attributes& attributes, Pass pass, const ffi::RemainingArgs& args, Problem& p,
                        DType& dtype) {
  if (ffi::Error error = decode_attention(attributes, args, p, dtype); error.failure()) return error;
  if (ffi::Error error = place_region(args.get<ffi::Buffer<ffi::S32>>(3)->typed_data(), p); error.failure())
    return error;
  return decode_tile(attributes.tile, pass, p);
}

ffi::Error fused_forward(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                         const Attributes& attributes) {
  ForwardArgs a{};
  if (ffi::Error error = decode_fused(attributes, Pass::kForward, args, a.problem, a.dtype); error.failure())
    return error;
  if (args.size() > 5 || rets.size() != 3) return invalid("na_fused_forward: wrong number of operands or results");
  auto operand = [&](size_t i) { return args.get<ffi::AnyBuffer>(i)->untyped_data(); };
  auto result = [&](size_t i) { return *rets.get<ffi::AnyBuffer>(i); };
  a.query = operand(0), a.key = operand(1), a.value = operand(2);
  a.rpb = args.size() == 5 ? static_cast<const float*>(operand(4)) : nullptr;
  a.out = result(0)->untyped_data();
  a.lse = static_cast<float*>(result(1)->untyped_data());
  expect_writes(*result(0));
  const Kernels& kernels = best_kernels();
  const Problem& p = a.problem;
  const Parallel parallel = make_parallel(pool, 2 * pairs(p) * (p.head_dim + p.value_dim), result(2)->untyped_data(),
                                          static_cast<int64_t>(result(2)->element_count()), kernels.forward_scratch(p));
  if (parallel.workers < 1) return invalid("the scratch buffer is too small");
  kernels.fused_forward(a, parallel);
  return ffi::Error::Success();
}

ffi::Error fused_backward(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                          const Attributes& attributes) {
  BackwardArgs a{};
  if (ffi::Error error = decode_fused(attributes, Pass::kBackward, args, a.problem, a.dtype); error.failure())
    return error;
  const bool has_bias = args.size() == 8;
  if (args.size() != (has_bias ? 8u : 7u) || rets.size() != (has_bias ? 5u : 4u))
    return invalid("na_fused_backward: wrong number of operands or results");
  auto operand = [&](size_t i) { return args.get<ffi::AnyBuffer>(i)->untyped_data(); };
  auto result = [&](size_t i) { return *rets.get<ffi::AnyBuffer>(i); };
  a.query = operand(0), a.key = operand(1), a.value = operand(2);
  a.lse = static_cast<const float*>(operand(4)), a.delta = static_cast<const float*>(operand(5)), a.dout = operand(6);
  a.rpb = has_bias ? static_cast<const float*>(operand(7)) : nullptr;
  a.dquery = result(0)->untyped_data();
  a.dkey = static_cast<float*>(result(1)->untyped_data());
  a.dvalue = static_cast<float*>(result(2)->untyped_data());
  a.drpb = has_bias ? static_cast<float*>(result(3)->untyped_data()) : nullptr;
  a.drpb_parts = has_bias ? static_cast<int>(result(3)->dimensions()[0]) : 0;
  for (size_t i = 0; i < 3; ++i) expect_writes(*result(i));
  ffi::Result<ffi::AnyBuffer> scratch = result(has_bias ? 4 : 3);
  const Kernels& kernels = best_kernels();
  const Problem& p = a.problem;
  const Parallel parallel = make_parallel(pool, 5 * pairs(p) * (p.head_dim + p.value_dim), scratch->untyped_data(),
                                          static_cast<int64_t>(scratch->element_count()), kernels.backward_scratch(p));
  if (parallel.workers < 1) return invalid("the scratch buffer is too small");
  kernels.fused_backward(a, parallel);
  return ffi::Error::Success();
}

// Scores -> weights and their log-sum-exps; of the attributes, only the window and the scale matter.
ffi::Error softmax(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> scores, ffi::ResultBuffer<ffi::F32> weights,
                   ffi::ResultBuffer<ffi::F32> lse, ffi::Result<ffi::AnyBuffer>, const Attributes& attributes) {
  int64_t slots = 1;
  for (int64_t size : attributes.kernel_size) slots *= size;
  const auto dims = scores.dimensions();
  if (dims.size() == 0 || dims.back() < slots) return invalid("rows of scores are shorter than the window");
  if (weights->element_count() != scores.element_count() ||
      static_cast<int64_t>(lse->element_count()) * dims.back() != static_cast<int64_t>(scores.element_count()))
    return invalid("na_softmax: results do not match the scores");
  SoftmaxArgs args{};
  args.rows = static_cast<int64_t>(lse->element_count());
  args.slots = static_cast<int>(slots);
  args.pitch = static_cast<int>(dims.back());
  args.scale = static_cast<float>(attributes.scale);
  args.scores = scores.typed_data();
  args.weights = weights->typed_data();
  args.lse = lse->typed_data();
  best_kernels().softmax(
      args, make_parallel(pool, kExponentialCost * static_cast<double>(scores.element_count()), nullptr, 0, 0));
  return ffi::Error::Success();
}

// Does nothing: what a custom call itself costs, for the benchmarks to subtract.
ffi::Error empty(ffi::RemainingArgs, ffi::RemainingRets) { return ffi::Error::Success(); }

auto fused_binding() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attrs<Attributes>();
}

}  // namespace
}  // namespace jax_na

namespace {
using jax_na::Family;
using jax_na::Unfused;
}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaNaiveQk, (jax_na::unfused<Family::kNaive, Unfused::kQk>), jax_na::unfused_binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaNaiveAv, (jax_na::unfused<Family::kNaive, Unfused::kAv>), jax_na::unfused_binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaNaiveInverse, (jax_na::unfused<Family::kNaive, Unfused::kInverse>),
                              jax_na::unfused_binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaGemmQk, (jax_na::unfused<Family::kGemm, Unfused::kQk>), jax_na::unfused_binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaGemmAv, (jax_na::unfused<Family::kGemm, Unfused::kAv>), jax_na::unfused_binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaGemmInverse, (jax_na::unfused<Family::kGemm, Unfused::kInverse>),
                              jax_na::unfused_binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaFusedForward, jax_na::fused_forward, jax_na::fused_binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaFusedBackward, jax_na::fused_backward, jax_na::fused_binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaSoftmax, jax_na::softmax,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attrs<jax_na::Attributes>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaEmpty, jax_na::empty, xla::ffi::Ffi::Bind().RemainingArgs().RemainingRets());
