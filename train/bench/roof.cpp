// SPDX-License-Identifier: Apache-2.0
#include "train/bench/roof.h"

#include <algorithm>
#include <chrono>

#include "core/cuda/device.h"
#include "core/ops/matmul.h"
#include "core/parallel.h"
#include "core/rng.h"
#include "train/bench/kernels.h"

namespace fovea::train {
namespace {

template <typename F>
double seconds_of(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

void wait_for(Device device) {
  if (!device.is_cpu()) FOVEA_GPU_CALL(device, synchronize, stream_of(device));
}

RoofSample product_roof(Dtype dtype, Device device) {
  const int64_t n = device.is_cpu() ? 1024 : device.kind == Device::Kind::cuda ? 8192 : 64;
  const auto random = [&](const char* name) {
    const Tensor t = Tensor::empty({n, n});
    fill_normal(t, RngKey(1, "roof", name));
    return t.to(dtype).to(device);
  };
  const Tensor a = random("a"), b = random("b"), c = Tensor::empty({n, n}, dtype, device);
  return [=] {
    wait_for(device);
    return 2.0 * static_cast<double>(n * n * n) / seconds_of([&] {
             matmul_into(c, a, b, false);
             wait_for(device);
           });
  };
}

RoofSample fma_roof(Device device) {
  if (!device.is_cpu()) return product_roof(Dtype::f32, device);
  constexpr int64_t kRounds = 2'000'000;
  const int64_t threads = num_threads();
  const Tensor sink = Tensor::zeros({threads});
  const double flops = static_cast<double>(threads) *
                       static_cast<double>(FOVEA_SIMD_CALL(fma_flops_a_round)) *
                       static_cast<double>(kRounds);
  return [=] {
    return flops / seconds_of([&] {
             parallel_for_each(0, threads, [&](int64_t t) {
               sink.data<float>()[t] = FOVEA_SIMD_CALL(fma_rounds, kRounds);
             });
           });
  };
}

RoofSample memory_roof(Device device) {
  if (!device.is_cpu()) {
    const int64_t values = device.kind == Device::Kind::cuda ? int64_t{256} << 20 : 1 << 16;
    const Tensor from = Tensor::full({values}, 0.5, Dtype::f32, device),
                 to = Tensor::empty_like(from);
    return [=] {
      wait_for(device);
      return 8.0 * static_cast<double>(values) / seconds_of([&] {
               to.copy_(from);
               wait_for(device);
             });
    };
  }
  constexpr int64_t n = int64_t{24} << 20;  // 96 MiB each
  const Tensor a = Tensor::zeros({n}), b = Tensor::full({n}, 1.0), c = Tensor::full({n}, 2.0);
  return [=] {
    return 12.0 * static_cast<double>(n) / seconds_of([&] {
             parallel_for(0, n, 1 << 16, [&](int64_t begin, int64_t end) {
               FOVEA_SIMD_CALL(triad, a.data<float>() + begin, b.data<float>() + begin,
                               c.data<float>() + begin, end - begin);
             });
           });
  };
}

double measured(const RoofSample& roof) {
  double best = 0.0;
  for (int i = 0; i < 9; ++i) best = std::max(best, roof());
  return best;
}

}  // namespace fovea::train
