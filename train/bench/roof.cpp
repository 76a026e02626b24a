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
double seconds_of(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

RoofSample product_roof(Dtype dtype) {
  constexpr int64_t n = 1024;
  const Tensor a = Tensor::full({n, n}, 0.5).to(dtype), b = Tensor::full({n, n}, 0.25).to(dtype),
               c = Tensor::empty({n, n}, dtype);
  return [=] { return 2.0 * n * n * n / seconds_of([&] { matmul_into(c, a, b, false); }); };
}

RoofSample fma_roof() {
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

RoofSample triad_roof() {
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
