// SPDX-License-Identifier: Apache-2.0
#include "nn/dropout.h"

#include "autograd/function.h"
#include "core/parallel.h"
#include "nn/cpu/kernels.h"
#include "nn/cuda/elementwise.h"
#include "nn/operands.h"

namespace fovea::nn {
namespace {

class DropFn final : public Function {
 public:
  // `first` is the index of the first draw; a draw covers an element, or a sample
  DropFn(const RngKey& rng, double rate, uint64_t first, bool per_sample)
      : rng_(rng), rate_(rate), first_(first), per_sample_(per_sample) {}
  const char* name() const override { return per_sample_ ? "drop_path" : "dropout"; }
  Tensor forward(const Tensor& x) { return masked(x); }
  Tensors backward(const Tensors& dout) override { return {masked(dout[0])}; }

 private:
  Tensor masked(const Tensor& input) const {
    const Tensor x = input.contiguous(), y = Tensor::empty_like(x);
    check_operands(name(), x);
    if (!x.device().is_cpu())
      mask_on_gpu(x, y);
    else if (per_sample_)
      mask_samples(x, y);
    else
      mask_elements(x, y);
    return y;
  }
  void mask_on_gpu(const Tensor& x, const Tensor& y) const {
    const int64_t span = per_sample_ ? x.numel() / std::max<int64_t>(1, x.dim(0)) : 1;
    FOVEA_GPU_CALL(x.device(), dropout, y.raw(), x.raw(), x.dtype(), x.numel(), span, rng_, first_,
                   dropout_threshold(rate_), static_cast<float>(1.0 / (1.0 - rate_)),
                   stream_of(x.device()));
  }
  void mask_elements(const Tensor& x, const Tensor& y) const {
    const uint32_t threshold = dropout_threshold(rate_);
    const double factor = 1.0 / (1.0 - rate_);
    const int64_t size = size_of(x.dtype());
    const auto at = [&](const Tensor& t, int64_t i) {
      return static_cast<char*>(t.raw()) + i * size;
    };
    parallel_for(0, x.numel(), 8192, [&](int64_t begin, int64_t end) {
      if (x.dtype() == Dtype::f64) {
        for (int64_t i = begin; i < end; ++i) {
          y.data<double>()[i] = random_word(rng_, first_ + static_cast<uint64_t>(i)) < threshold
                                    ? 0.0
                                    : factor * x.data<double>()[i];
        }
      } else {
        FOVEA_SIMD_CALL(dropout, at(y, begin), at(x, begin), x.dtype(), end - begin, rng_.key,
                        rng_.high, first_ + static_cast<uint64_t>(begin), threshold,
                        static_cast<float>(factor));
      }
    });
  }
  void mask_samples(const Tensor& x, const Tensor& y) const {
    const uint32_t threshold = dropout_threshold(rate_);
    const int64_t span = x.dim(0) > 0 ? x.numel() / x.dim(0) : 1;
    dispatch_floating(x.dtype(), name(), [&]<typename T>() {
      const auto factor = static_cast<accumulator_t<T>>(1.0 / (1.0 - rate_));
      parallel_for(
          0, x.dim(0), std::max<int64_t>(1, 4096 / std::max<int64_t>(1, span)),
          [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
              const bool keep = random_word(rng_, first_ + static_cast<uint64_t>(i)) >= threshold;
              for (int64_t e = i * span; e < (i + 1) * span; ++e)
                y.data<T>()[e] =
                    keep ? T(static_cast<accumulator_t<T>>(x.data<T>()[e]) * factor) : T(0.0f);
            }
          });
    });
  }

  RngKey rng_;
  double rate_;
  uint64_t first_;
  bool per_sample_;
};

Variable drop(const Variable& x, double rate, const Module& owner, bool per_sample) {
  const char* purpose = per_sample ? "drop_path" : "dropout";
  FOVEA_CHECK(rate >= 0.0 && rate < 1.0, purpose, ": the rate must be in [0, 1), found ", rate);
  if (rate == 0.0 || !owner.training() || x.value().numel() == 0) return x;
  const auto first = static_cast<uint64_t>(RandomScope::current().first_sample) *
                     static_cast<uint64_t>(per_sample ? 1 : x.value().numel() / x.dim(0));
  return record(make<DropFn>(current_rng(purpose, owner.path()), rate, first, per_sample), x);
}

}  // namespace

Variable dropout(const Variable& x, double rate, const Module& owner) {
  return drop(x, rate, owner, false);
}
Variable drop_path(const Variable& x, double rate, const Module& owner) {
  return drop(x, rate, owner, true);
}

}  // namespace fovea::nn
