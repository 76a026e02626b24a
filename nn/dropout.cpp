// SPDX-License-Identifier: Apache-2.0
#include "nn/dropout.h"

#include "autograd/function.h"
#include "core/parallel.h"

namespace fovea::nn {
namespace {

class DropFn final : public Function {
 public:
  // `first` is the index of the first draw; one draw covers `span` elements (0: one sample)
  DropFn(const RngKey& rng, double rate, uint64_t first, bool per_sample) : rng_(rng), rate_(rate), first_(first), per_sample_(per_sample) {}
  const char* name() const override { return per_sample_ ? "drop_path" : "dropout"; }
  Tensor forward(const Tensor& x) { return masked(x); }
  Tensors backward(const Tensors& dout) override { return {masked(dout[0])}; }

 private:
  Tensor masked(const Tensor& input) const {
    const Tensor x = input.contiguous(), y = Tensor::empty_like(x);
    const uint32_t threshold = dropout_threshold(rate_);
    const int64_t span = per_sample_ && x.dim(0) > 0 ? x.numel() / x.dim(0) : 1;
    dispatch_floating(x.dtype(), name(), [&]<typename T>() {
      const auto scale = static_cast<accumulator_t<T>>(1.0 / (1.0 - rate_));
      parallel_for(0, span > 0 ? x.numel() / span : 0, std::max<int64_t>(1, 4096 / std::max<int64_t>(1, span)), [&](int64_t begin, int64_t end) {
        uint64_t block = ~0ull;
        std::array<uint32_t, 4> words{};
        for (int64_t i = begin; i < end; ++i) {
          const uint64_t index = first_ + static_cast<uint64_t>(i);
          if (index >> 2 != block) words = philox(rng_, block = index >> 2);
          const bool keep = words[index & 3] >= threshold;
          for (int64_t e = i * span; e < (i + 1) * span; ++e) {
            y.data<T>()[e] = keep ? T(static_cast<accumulator_t<T>>(x.data<T>()[e]) * scale) : T(0.0f);
          }
        }
      });
    });
    return y;
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
  const auto first = static_cast<uint64_t>(RandomScope::current().first_sample) * static_cast<uint64_t>(per_sample ? 1 : x.value().numel() / x.dim(0));
  return record(make<DropFn>(current_rng(purpose, owner.path()), rate, first, per_sample), x);
}

}  // namespace

Variable dropout(const Variable& x, double rate, const Module& owner) { return drop(x, rate, owner, false); }
Variable drop_path(const Variable& x, double rate, const Module& owner) { return drop(x, rate, owner, true); }

}  // namespace fovea::nn
