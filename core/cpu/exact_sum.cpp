// SPDX-License-Identifier: Apache-2.0
#include "core/ops/exact_sum.h"

#include <atomic>

#include "core/cuda/exact_sum.h"
#include "core/parallel.h"

namespace fovea {
namespace {

constexpr int64_t kGrain = 16384;  // elements

}  // namespace

ExactSum::ExactSum(const Shape& shape, Device device)
    : shape_(shape),
      parts_(Tensor::zeros({2, shape.numel()}, Dtype::i64, device)),
      bad_(Tensor::zeros({1}, Dtype::i32, device)) {}

void ExactSum::add(const Tensor& addend) {
  FOVEA_CHECK(addend.dtype() == Dtype::f32 && addend.shape() == shape_ &&
                  addend.device() == parts_.device(),
              "exact sum: expected f32 ", shape_, " on ", parts_.device(), ", found ",
              addend.dtype(), ' ', addend.shape(), " on ", addend.device());
  FOVEA_CHECK(addends_ < FixedPoint::kMostAddends, "exact sum: more than ",
              FixedPoint::kMostAddends, " addends could overflow");
  ++addends_;
  const Tensor x = addend.contiguous();
  const int64_t n = x.numel();
  auto* parts = parts_.data<int64_t>();
  auto* bad = bad_.data<int32_t>();
  if (const Device device = x.device(); !device.is_cpu()) {
    FOVEA_GPU_CALL(device, exact_add, parts, bad, x.data<float>(), n, stream_of(device));
    return;
  }
  parallel_for(0, n, kGrain, [&, values = x.data<float>()](int64_t begin, int64_t end) {
    bool all = true;
    for (int64_t i = begin; i < end; ++i) {
      const bool holds = FixedPoint::holds(values[i]);
      all = all && holds;
      const FixedPoint one = FixedPoint::of(holds ? values[i] : 0.0f);
      parts[i] += one.high;
      parts[n + i] += one.low;
    }
    if (!all) std::atomic_ref(*bad).store(1, std::memory_order_relaxed);
  });
}

bool ExactSum::good() const { return bad_.to(kCpu).data<int32_t>()[0] == 0; }

Tensor ExactSum::total() const {
  const Tensor out = Tensor::empty(shape_, Dtype::f32, parts_.device());
  const int64_t n = out.numel();
  const auto* parts = parts_.data<int64_t>();
  if (const Device device = out.device(); !device.is_cpu()) {
    FOVEA_GPU_CALL(device, exact_total, out.data<float>(), parts, n, stream_of(device));
    return out;
  }
  parallel_for(0, n, kGrain, [&, to = out.data<float>()](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = FixedPoint{parts[i], parts[n + i]}.value();
  });
  return out;
}

void ExactSum::clear() {
  parts_.zero_();
  bad_.zero_();
  addends_ = 0;
}

}  // namespace fovea
