// SPDX-License-Identifier: Apache-2.0
// XLA FFI handlers: decode the buffers, choose the kernels, enqueue them on XLA's stream. Nothing here waits for the
// device or allocates on it, so XLA may record the calls into a CUDA graph.
#include "cuda/host/handlers.h"

#include <utility>

#include "common/call/decode.h"
#include "cuda/host/run.h"

namespace jax_na::cuda {
namespace {

ffi::Error run_call(Target target, Stream stream, const ffi::RemainingArgs& args, const ffi::RemainingRets& rets,
                    const Attributes& attributes) {
  Call call{};
  if (ffi::Error error = decode(kCuda, target, attributes, args, rets, call); error.failure()) return error;
  const char* failure = nullptr;
  const std::string reason = run(call, attributes.kernels, stream, failure);
  if (!reason.empty()) return refuse(target, reason);
  if (failure == nullptr) return ffi::Error::Success();
  return ffi::Error::Internal(std::string(kTargetNames[static_cast<int>(target)]) + ": " + failure);
}

template <int target>
XLA_FFI_Error* handle(XLA_FFI_CallFrame* frame) {
  static const auto* const handler =
      ffi::Ffi::Bind()
          .Ctx<ffi::PlatformStream<Stream>>()
          .RemainingArgs()
          .RemainingRets()
          .Attrs<Attributes>()
          .To(
              [](Stream stream, ffi::RemainingArgs args, ffi::RemainingRets rets, const Attributes& attributes) {
                return run_call(static_cast<Target>(target), stream, args, rets, attributes);
              },
              {ffi::Traits::kCmdBufferCompatible})
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

}  // namespace jax_na::cuda
