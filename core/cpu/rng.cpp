// SPDX-License-Identifier: Apache-2.0
#include "core/rng.h"

#include <cmath>
#include <numbers>

#include "core/parallel.h"

namespace fovea {
namespace {

// value(index) for every element in row-major order
template <typename F>
void fill_by_index(const Tensor& out, const char* op, F&& value) {
  FOVEA_CHECK(out.is_contiguous(), op, ": expected a contiguous tensor, found strides ",
              out.strides());
  if (!out.device().is_cpu()) {  // made here, so that the bits are the same everywhere
    const Tensor here = Tensor::empty(out.shape(), out.dtype());
    fill_by_index(here, op, value);
    return out.copy_(here);
  }
  dispatch_floating(out.dtype(), op, [&]<typename T>() {
    T* data = out.data<T>();
    parallel_for(0, out.numel(), 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if constexpr (std::is_same_v<T, bf16>)
          data[i] = bf16(static_cast<float>(value(static_cast<uint64_t>(i))));
        else
          data[i] = static_cast<T>(value(static_cast<uint64_t>(i)));
      }
    });
  });
}

}  // namespace

void fill_uniform(const Tensor& out, const RngKey& rng, double low, double high) {
  fill_by_index(out, "fill_uniform", [&](uint64_t i) {
    return low + (high - low) * static_cast<double>(to_uniform(random_word(rng, i)));
  });
}

void fill_normal(const Tensor& out, const RngKey& rng, double mean, double deviation) {
  fill_by_index(out, "fill_normal", [&](uint64_t i) {
    const auto w = philox(rng, i >> 1);
    const size_t pair = (i & 1) * 2;
    const double radius =
        std::sqrt(-2.0 * std::log((static_cast<double>(w[pair]) + 1.0) * 0x1p-32));
    return mean + deviation * radius *
                      std::cos(2.0 * std::numbers::pi * 0x1p-32 * static_cast<double>(w[pair + 1]));
  });
}

}  // namespace fovea
