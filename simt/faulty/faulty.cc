// SPDX-License-Identifier: Apache-2.0
// C interface of the kernels with faults, for test_executor.py.
#include "simt/faulty/sm90.cuh"

namespace {

using namespace jax_na::cuda;

// A matrix [rows, columns] of 2-byte elements in boxes of box_rows x 64.
TensorMap matrix_map(const void* data, int rows, int columns, int box_rows) {
  const auto across = static_cast<uint64_t>(columns), down = static_cast<uint64_t>(rows);
  const auto box = static_cast<uint32_t>(box_rows);
  TensorView view{data, {across, down, 1, 1, 1}, {}, {64, box, 1, 1, 1}, {1, 1, 1, 1, 1}, Swizzle::k128};
  for (uint64_t& stride : view.stride) stride = 2 * across;
  TensorMap map;
  encode_tensor_map(map, view);
  return map;
}

void nothing() {}

}  // namespace

extern "C" {

void begin(uint32_t seed) {
  simt::reset();
  simt::set_seed(seed);
}
void buffer(const void* data, size_t bytes, const char* name, int writable) {
  simt::register_buffer(data, bytes, name, writable != 0);
}
int findings() { return simt::findings(); }
const char* report() { return simt::report(); }

void run_product(const Half* x, const Half* y, float* out, int rows, int steps, int fault) {
  const ProductParams p{x, y, out, rows, steps, fault};
  simt::launch(product, static_cast<unsigned>((rows + kTile - 1) / kTile), 128, 4 * kTileBytes, p);
}

void run_window_sum(const float* x, float* out, int count, int fault) {
  const WindowParams p{x, out, count, fault};
  simt::launch(window_sum, static_cast<unsigned>((count + 63) / 64), 64, 0, p);
}

void run_exchange(int* out, int fault) {
  const ExchangeParams p{out, fault};
  simt::launch(exchange, 1, 128, 256, p);
}

void run_tensor_product(const void* x, const void* y, uint16_t* out, int rows, int steps, int fault) {
  const int terms = 64 * steps, claimed = rows + (fault == kMapTooLong ? 64 : 0);
  const TensorProductParams p{
      matrix_map(x, claimed, terms, 128), matrix_map(y, terms, 64, 64), out, rows, steps, fault};
  simt::launch(tensor_product, static_cast<unsigned>((rows + 127) / 128), 384, Stages::kBytes, p);
}

void run_square(const uint16_t* x, float* out, int fault) {
  const SquareParams p{x, out, fault};
  simt::launch(square, 1, 128, kTileBytes, p);
}

const char* launch_with(int threads, int shared_bytes) {
  return simt::launch(nothing, 1, static_cast<unsigned>(threads), shared_bytes);
}
}
