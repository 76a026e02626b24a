// SPDX-License-Identifier: Apache-2.0
#include "train/bench/roof.h"

#include <algorithm>
#include <chrono>

#include "core/ops/matmul.h"
#include "core/parallel.h"
#include "train/bench/kernels.h"

namespace fovea::train {
namespace {

template <typename F>
double best_seconds(int repeats, F&& f) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

double measured_peak_flops(Dtype dtype) {
  constexpr int64_t n = 1024;
  const Tensor a = Tensor::full({n, n}, 0.5).to(dtype), b = Tensor::full({n, n}, 0.25).to(dtype), c = Tensor::empty({n, n}, dtype);
  matmul_into(c, a, b, false);
  return 2.0 * n * n * n / best_seconds(8, [&] { matmul_into(c, a, b, false); });
}

double measured_fma_flops() {
  constexpr int64_t kRounds = 4'000'000;
  const int64_t threads = num_threads();
  Tensor sink = Tensor::zeros({threads});
  double flops = 0.0;
  const double seconds = best_seconds(4, [&] {
    parallel_for_each(0, threads, [&](int64_t t) { sink.data<float>()[t] = FOVEA_SIMD_CALL(fma_rounds, kRounds); });
    flops = static_cast<double>(threads) * static_cast<double>(FOVEA_SIMD_CALL(fma_flops_a_round)) * static_cast<double>(kRounds);
  });
  return flops / seconds;
}

double measured_triad_bandwidth() {
  constexpr int64_t n = int64_t{24} << 20;  // 96 MiB each
  const Tensor a = Tensor::zeros({n}), b = Tensor::full({n}, 1.0), c = Tensor::full({n}, 2.0);
  const double seconds = best_seconds(5, [&] {
    parallel_for(0, n, 1 << 16, [&](int64_t begin, int64_t end) {
      FOVEA_SIMD_CALL(triad, a.data<float>() + begin, b.data<float>() + begin, c.data<float>() + begin, end - begin);
    });
  });
  return 12.0 * static_cast<double>(n) / seconds;
}

}  // namespace fovea::train
