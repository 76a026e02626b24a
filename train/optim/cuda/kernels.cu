// SPDX-License-Identifier: Apache-2.0
// Limit: bytes. AdamW reads value, gradient and both states and writes all but the gradient: 28
// bytes an element; Lion and SGD 20, the average 12, the norm 4. A thread keeps up to four 16-byte
// loads of each stream in flight.
#include "core/cuda/kernel.cuh"
#include "train/optim/cuda/kernels.h"

namespace FOVEA_GPU {
namespace {

constexpr int kThreads = 512;
constexpr int kWide = 4;  // floats of an access

// Elements of one vector position of a piece.
struct Element {
  float value, gradient, first, second;
};

// f(element) over a piece; what it leaves is written back, gradients excepted. kSecond: there is a
// second state; kGradient: there is a gradient.
template <bool kGradient, bool kSecond, bool kWriteValue, typename F>
__device__ inline void update(const OptimizerPiece& piece, F f) {
  const Global<float> value = piece.value, first = piece.first, second = piece.second;
  const Global<const float> gradient = piece.gradient;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool wide = aligned(piece.value) && aligned(piece.gradient) && aligned(piece.first) &&
                    aligned(piece.second);
  const int64_t whole = wide ? piece.count / kWide * kWide : 0;
#pragma unroll 2
  for (int64_t i = int64_t{threadIdx.x} * kWide; i < whole; i += kThreads * kWide) {
    Vec<float, kWide> p = load<kWide>(value + i), m = load<kWide>(first + i), g{}, v{};
    if constexpr (kGradient) g = load<kWide>(gradient + i);
    if constexpr (kSecond) v = load<kWide>(second + i);
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      Element e{p[k], g[k], m[k], v[k]};
      f(e);
      p[k] = e.value;
      m[k] = e.first;
      v[k] = e.second;
    }
    if constexpr (kWriteValue) store(value + i, p);
    store(first + i, m);
    if constexpr (kSecond) store(second + i, v);
  }
  for (int64_t i = whole + threadIdx.x; i < piece.count; i += kThreads) {
    Element e{value[i], 0.0f, first[i], 0.0f};
    if constexpr (kGradient) e.gradient = gradient[i];
    if constexpr (kSecond) e.second = second[i];
    f(e);
    if constexpr (kWriteValue) value[i] = e.value;
    first[i] = e.first;
    if constexpr (kSecond) second[i] = e.second;
  }
}

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(Global<const OptimizerPiece> pieces, AdamwStep s) {
  const OptimizerPiece piece = pieces[blockIdx.x];
  update<true, true, true>(piece, [&](Element& e) {
    const float g = e.gradient * s.factor;
    e.first = fma(s.beta1, e.first, (1.0f - s.beta1) * g);
    e.second = fma(s.beta2, e.second, (1.0f - s.beta2) * (g * g));
    e.value = fma(-s.step_size, e.first / fma(sqrtf(e.second), s.root_scale, s.eps),
                  piece.shrink * e.value);
  });
}

__global__ void __launch_bounds__(kThreads)
    sgd_kernel(Global<const OptimizerPiece> pieces, MomentumStep s) {
  const OptimizerPiece piece = pieces[blockIdx.x];
  update<true, false, true>(piece, [&](Element& e) {
    const float g = e.gradient * s.factor;
    e.first = fma(s.beta1, e.first, g);
    e.value = fma(-s.lr, s.nesterov ? fma(s.beta1, e.first, g) : e.first, piece.shrink * e.value);
  });
}

__global__ void __launch_bounds__(kThreads)
    lion_kernel(Global<const OptimizerPiece> pieces, MomentumStep s) {
  const OptimizerPiece piece = pieces[blockIdx.x];
  update<true, false, true>(piece, [&](Element& e) {
    const float g = e.gradient * s.factor;
    const float direction = fma(s.beta1, e.first, (1.0f - s.beta1) * g);
    const float sign = direction > 0.0f ? 1.0f : direction < 0.0f ? -1.0f : direction;
    e.value = fma(-s.lr, sign, piece.shrink * e.value);
    e.first = fma(s.beta2, e.first, (1.0f - s.beta2) * g);
  });
}

__global__ void __launch_bounds__(kThreads)
    ema_kernel(Global<const OptimizerPiece> pieces, float rest) {
  const OptimizerPiece piece = pieces[blockIdx.x];
  update<false, false, false>(piece,
                              [&](Element& e) { e.first = fma(rest, e.value - e.first, e.first); });
}

__global__ void __launch_bounds__(kThreads) swap_kernel(Global<const OptimizerPiece> pieces) {
  const OptimizerPiece piece = pieces[blockIdx.x];
  update<false, false, true>(piece, [&](Element& e) {
    const float value = e.value;
    e.value = e.first;
    e.first = value;
  });
}

// In f64, where the square of an f32 is exact and neither overflows nor vanishes.
__device__ inline double block_sum_f64(double x, Shared<double> room) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int bits = 16; bits > 0; bits /= 2) x += shuffle_xor(x, bits);
  if (lane == 0) room[warp] = x;
  sync_block();
  x = 0.0;
  if (lane < kThreads / kWarp) x = room[lane];
  for (int bits = 16; bits > 0; bits /= 2) x += shuffle_xor(x, bits);
  return x;
}

__global__ void __launch_bounds__(kThreads)
    squares_kernel(Global<double> partial, Global<const OptimizerPiece> pieces) {
  FOVEA_SHARED(double, room, kThreads / kWarp);
  const OptimizerPiece piece = pieces[blockIdx.x];
  const Global<const float> gradient = piece.gradient;
  double sum = 0.0;
  const bool wide = reinterpret_cast<uintptr_t>(piece.gradient) % 16 == 0;
  const int64_t whole = wide ? piece.count / kWide * kWide : 0;
  for (int64_t i = int64_t{threadIdx.x} * kWide; i < whole; i += kThreads * kWide) {
    const Vec<float, kWide> g = load<kWide>(gradient + i);
#pragma unroll
    for (int k = 0; k < kWide; ++k) sum += static_cast<double>(g[k]) * static_cast<double>(g[k]);
  }
  for (int64_t i = whole + threadIdx.x; i < piece.count; i += kThreads) {
    const float g = gradient[i];
    sum += static_cast<double>(g) * static_cast<double>(g);
  }
  sum = block_sum_f64(sum, room);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    root_kernel(Global<float> total, Global<const double> partial, int64_t count) {
  FOVEA_SHARED(double, room, kThreads / kWarp);
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  sum = block_sum_f64(sum, room);
  if (threadIdx.x == 0) total[0] = static_cast<float>(sqrt(sum));
}

}  // namespace

void adamw_pieces(const OptimizerPiece* pieces, int64_t count, const AdamwStep& step,
                  Stream stream) {
  if (count > 0) launch<adamw_kernel>(count, kThreads, 0, stream, pieces, step);
}
void sgd_pieces(const OptimizerPiece* pieces, int64_t count, const MomentumStep& step,
                Stream stream) {
  if (count > 0) launch<sgd_kernel>(count, kThreads, 0, stream, pieces, step);
}
void lion_pieces(const OptimizerPiece* pieces, int64_t count, const MomentumStep& step,
                 Stream stream) {
  if (count > 0) launch<lion_kernel>(count, kThreads, 0, stream, pieces, step);
}
void ema_pieces(const OptimizerPiece* pieces, int64_t count, float rest, Stream stream) {
  if (count > 0) launch<ema_kernel>(count, kThreads, 0, stream, pieces, rest);
}
void swap_pieces(const OptimizerPiece* pieces, int64_t count, Stream stream) {
  if (count > 0) launch<swap_kernel>(count, kThreads, 0, stream, pieces);
}
void norm_of_pieces(float* total, void* partial, const OptimizerPiece* pieces, int64_t count,
                    Stream stream) {
  auto* sums = static_cast<double*>(partial);
  if (count > 0) launch<squares_kernel>(count, kThreads, 0, stream, sums, pieces);
  launch<root_kernel>(1, kThreads, 0, stream, total, sums, count);
}

}  // namespace FOVEA_GPU
