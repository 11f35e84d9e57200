// SPDX-License-Identifier: Apache-2.0
// XLA FFI handlers: decode the buffers into arguments, enqueue the kernels on XLA's stream. Nothing here waits for the
// device or allocates on it, so XLA may record the calls into a CUDA graph.
#include "cuda/host/handlers.h"

#include "common/call/decode.h"
#include "cuda/host/kernels.h"

namespace jax_na::cuda {

// The attributes of the fused and GEMM targets.
struct FusedAttributes {
  Integers kernel_size, stride, dilation, is_causal, length, tile;
  double scale;
  int64_t is_exact;  // products of float32 values: exact, else rounded to TF32

  Attributes common() const { return {kernel_size, stride, dilation, is_causal, length, tile, scale}; }
};

}  // namespace jax_na::cuda

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(jax_na::cuda::FusedAttributes, ffi::StructMember<jax_na::Integers>("kernel_size"),
                                      ffi::StructMember<jax_na::Integers>("stride"),
                                      ffi::StructMember<jax_na::Integers>("dilation"),
                                      ffi::StructMember<jax_na::Integers>("is_causal"),
                                      ffi::StructMember<jax_na::Integers>("length"),
                                      ffi::StructMember<jax_na::Integers>("tile"), ffi::StructMember<double>("scale"),
                                      ffi::StructMember<int64_t>("is_exact"));

namespace jax_na::cuda {
namespace {

ffi::Error result_of(const char* error) {
  return error == nullptr ? ffi::Error::Success() : ffi::Error::Internal(std::string("jax_na: ") + error);
}

// What naive and GEMM kernels have in common.
ffi::Error decode_arguments(Unfused operation, ffi::AnyBuffer first, ffi::AnyBuffer second,
                            ffi::Buffer<ffi::S32> offsets, ffi::AnyBuffer result, const Attributes& attributes,
                            UnfusedArgs& args) {
  const size_t rank = attributes.kernel_size.size();
  UnfusedArrays arrays{};
  if (ffi::Error error = decode_unfused(operation, rank, first, second, result, arrays); error.failure()) return error;
  if (ffi::Error error = make_problem(attributes, arrays, args.problem); error.failure()) return error;
  if (ffi::Error error = check_offsets(offsets, rank); error.failure()) return error;
  args.dtype = arrays.dtype;
  args.offsets = offsets.typed_data();
  args.weights = arrays.weights, args.x = arrays.x_data, args.y = arrays.y_data;
  return ffi::Error::Success();
}

template <Unfused operation>
ffi::Error naive(Stream stream, ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Buffer<ffi::S32> offsets,
                 ffi::Result<ffi::AnyBuffer> result, const Attributes& attributes) {
  UnfusedArgs args{};
  const ffi::Error error = decode_arguments(operation, first, second, offsets, *result, attributes, args);
  if (error.failure()) return error;
  if (operation == Unfused::kQk) return result_of(naive_qk(args, stream));
  if (operation == Unfused::kAv) return result_of(naive_av(args, stream));
  return result_of(naive_inverse(args, stream));
}

// Pairs of tiles from the attribute: extents along the axes given for queries, then for keys, pair after pair.
template <size_t kPairs>
bool decode_tiles(Integers values, int rank, Tiles* const (&pairs)[kPairs]) {
  if (values.size() != 2 * kPairs * static_cast<size_t>(rank)) return false;
  const int64_t* next = values.begin();
  for (Tiles* tiles : pairs)
    for (int* side : {tiles->query, tiles->key})
      for (int a = 0; a < kAxes; ++a) side[a] = a < kAxes - rank ? 1 : static_cast<int>(*next++);
  return true;
}
constexpr char kBadTiles[] = "the attribute tile has a wrong number of extents";

Precision decode_precision(const FusedAttributes& attributes) {
  return attributes.is_exact != 0 ? Precision::kExact : Precision::kDefault;
}

// Operands `first` and `first + 1`, if there are so many: additional keys and values.
ffi::Error decode_additional(const ffi::RemainingArgs& args, size_t first, const Problem& p, Additional& additional) {
  if (args.size() == first) return ffi::Error::Success();
  const ffi::AnyBuffer key = *args.get<ffi::AnyBuffer>(first), value = *args.get<ffi::AnyBuffer>(first + 1);
  Shape k, v;
  if (ffi::Error error = parse_shape(key.dimensions(), 1, k); error.failure()) return error;
  if (ffi::Error error = parse_shape(value.dimensions(), 1, v); error.failure()) return error;
  const int tokens = k.spatial[kAxes - 1];
  if (k.batch != p.batch || v.batch != p.batch || v.spatial[kAxes - 1] != tokens || k.heads != p.kv_heads ||
      v.heads != p.kv_heads || k.features != p.head_dim || v.features != p.value_dim)
    return invalid("additional keys and values must be [batch, tokens, kv_heads, features]");
  additional = {key.untyped_data(), value.untyped_data(), tokens};
  return ffi::Error::Success();
}

template <Unfused operation>
ffi::Error gemm_call(Stream stream, ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Buffer<ffi::S32> offsets,
                     ffi::Result<ffi::AnyBuffer> result, const FusedAttributes& attributes) {
  GemmArgs args{};
  ffi::Error error = decode_arguments(operation, first, second, offsets, *result, attributes.common(), args);
  if (error.failure()) return error;
  const bool makes_weights = operation == Unfused::kQk;
  if ((makes_weights ? result->element_type() : first.element_type()) !=
      (makes_weights ? ffi::F32 : second.element_type()))
    return invalid("the GEMM kernels write weights in float32 and read them in the type of the other operand");
  if (!decode_tiles(attributes.tile, args.problem.rank, {&args.tiles})) return invalid(kBadTiles);
  args.precision = decode_precision(attributes);
  return result_of(gemm(operation, args, stream));
}

ffi::Error fused_forward_call(Stream stream, ffi::RemainingArgs args, ffi::RemainingRets rets,
                              const FusedAttributes& attributes) {
  ForwardArgs a{};
  if (ffi::Error error = decode_attention(attributes.common(), args, a.problem, a.dtype); error.failure()) return error;
  const bool has_bias = args.size() % 2 == 1;
  const size_t operands = has_bias ? 5 : 4;  // without additional keys and values
  if (args.size() > operands + 2 || rets.size() != 2)
    return invalid("na_fused_forward: wrong number of operands or results");
  if (!decode_tiles(attributes.tile, a.problem.rank, {&a.tiles, &a.hopper_tiles})) return invalid(kBadTiles);
  auto operand = [&](size_t i) { return args.get<ffi::AnyBuffer>(i)->untyped_data(); };
  auto result = [&](size_t i) { return (*rets.get<ffi::AnyBuffer>(i))->untyped_data(); };
  a.precision = decode_precision(attributes);
  a.query = operand(0), a.key = operand(1), a.value = operand(2);
  a.offsets = static_cast<const int32_t*>(operand(3));
  a.rpb = has_bias ? static_cast<const float*>(operand(4)) : nullptr;
  if (ffi::Error error = decode_additional(args, operands, a.problem, a.additional); error.failure()) return error;
  a.out = result(0);
  a.lse = static_cast<float*>(result(1));
  return result_of(fused_forward(a, stream));
}

ffi::Error fused_backward_call(Stream stream, ffi::RemainingArgs args, ffi::RemainingRets rets,
                               const FusedAttributes& attributes) {
  BackwardArgs a{};
  if (ffi::Error error = decode_attention(attributes.common(), args, a.problem, a.dtype); error.failure()) return error;
  const bool has_bias = args.size() % 2 == 0;
  const size_t operands = has_bias ? 8 : 7;  // without additional keys and values
  if (args.size() < operands || args.size() > operands + 2 || rets.size() != (has_bias ? 4u : 3u))
    return invalid("na_fused_backward: wrong number of operands or results");
  if (!decode_tiles(attributes.tile, a.problem.rank, {&a.query_tiles, &a.key_tiles})) return invalid(kBadTiles);
  auto operand = [&](size_t i) { return args.get<ffi::AnyBuffer>(i)->untyped_data(); };
  auto result = [&](size_t i) { return *rets.get<ffi::AnyBuffer>(i); };
  a.precision = decode_precision(attributes);
  a.query = operand(0), a.key = operand(1), a.value = operand(2);
  a.offsets = static_cast<const int32_t*>(operand(3));
  a.lse = static_cast<const float*>(operand(4)), a.delta = static_cast<const float*>(operand(5)), a.dout = operand(6);
  a.rpb = has_bias ? static_cast<const float*>(operand(7)) : nullptr;
  if (ffi::Error error = decode_additional(args, operands, a.problem, a.additional); error.failure()) return error;
  a.dquery = result(0)->untyped_data();
  a.dkey = result(1)->untyped_data();
  a.dvalue = result(2)->untyped_data();
  a.drpb = has_bias ? static_cast<float*>(result(3)->untyped_data()) : nullptr;
  a.drpb_parts = has_bias ? static_cast<int>(result(3)->dimensions()[0]) : 0;
  return result_of(fused_backward(a, stream));
}

// Does nothing: what a custom call itself costs, for the benchmarks to subtract.
ffi::Error empty(ffi::RemainingArgs, ffi::RemainingRets) { return ffi::Error::Success(); }

template <class Decoded>
auto unfused_binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::PlatformStream<Stream>>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::Buffer<ffi::S32>>()
      .Ret<ffi::AnyBuffer>()
      .Attrs<Decoded>();
}
auto naive_binding() { return unfused_binding<Attributes>(); }
auto gemm_binding() { return unfused_binding<FusedAttributes>(); }

auto fused_binding() {
  return ffi::Ffi::Bind().Ctx<ffi::PlatformStream<Stream>>().RemainingArgs().RemainingRets().Attrs<FusedAttributes>();
}

}  // namespace
}  // namespace jax_na::cuda

namespace {
using jax_na::Unfused;
namespace cuda = jax_na::cuda;
}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaCudaNaiveQk, cuda::naive<Unfused::kQk>, cuda::naive_binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaCudaNaiveAv, cuda::naive<Unfused::kAv>, cuda::naive_binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaCudaNaiveInverse, cuda::naive<Unfused::kInverse>, cuda::naive_binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaCudaGemmQk, cuda::gemm_call<Unfused::kQk>, cuda::gemm_binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaCudaGemmAv, cuda::gemm_call<Unfused::kAv>, cuda::gemm_binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaCudaGemmInverse, cuda::gemm_call<Unfused::kInverse>, cuda::gemm_binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaCudaFusedForward, cuda::fused_forward_call, cuda::fused_binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaCudaFusedBackward, cuda::fused_backward_call, cuda::fused_binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxNaCudaEmpty, cuda::empty, ffi::Ffi::Bind().RemainingArgs().RemainingRets(),
                              {ffi::Traits::kCmdBufferCompatible});
