// SPDX-License-Identifier: Apache-2.0
#include "nn/dropout.h"

#include "autograd/function.h"
#include "core/parallel.h"
#include "nn/cpu/kernels.h"
#include "nn/cuda/elementwise.h"
#include "nn/operands.h"

namespace fovea::nn {
namespace {

// Elements [at, at + count) of x, in rows of `row`. The draws of a row begin at `first` + its
// number x pitch.
struct Rows {
  int64_t at, count, row, pitch;
  uint64_t first;
};

// Those of x [B, n, C], a part of sequences [B, N, C], the first of which is sample `first`.
std::vector<Rows> rows_of(const SequencePart& part, const Shape& shape, int64_t first) {
  FOVEA_CHECK(shape.rank() == 3 && shape[1] == part.tokens(), "dropout: ", shape,
              " is not of a part of ", part.tokens(), " tokens");
  const int64_t C = shape[2];
  std::vector<Rows> rows;
  int64_t at = 0;
  for (int64_t b = 0; b < shape[0]; ++b) {
    for (const auto& [token, stride, tokens] : part.runs()) {
      const int64_t draw = ((first + b) * part.whole() + token) * C, count = tokens * C;
      rows.push_back({at, count, stride == 1 ? count : C, stride * C, static_cast<uint64_t>(draw)});
      at += count;
    }
  }
  return rows;
}

class DropFn final : public Function {
 public:
  // A draw covers an element, or a sample
  DropFn(const RngKey& rng, double rate, std::vector<Rows> rows, bool per_sample)
      : rng_(rng), rate_(rate), rows_(std::move(rows)), per_sample_(per_sample) {}
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
  static void* at(const Tensor& t, int64_t i) {
    return static_cast<char*>(t.raw()) + i * size_of(t.dtype());
  }
  void mask_on_gpu(const Tensor& x, const Tensor& y) const {
    const int64_t span = per_sample_ ? x.numel() / std::max<int64_t>(1, x.dim(0)) : 1;
    const uint32_t threshold = dropout_threshold(rate_);
    const auto factor = static_cast<float>(1.0 / (1.0 - rate_));
    for (const Rows& r : rows_) {
      if (r.row == r.count)
        FOVEA_GPU_CALL(x.device(), dropout, at(y, r.at), at(x, r.at), x.dtype(), r.count, span,
                       rng_, r.first, threshold, factor, stream_of(x.device()));
      else
        FOVEA_GPU_CALL(x.device(), dropout_rows, at(y, r.at), at(x, r.at), x.dtype(), r.count,
                       r.row, r.pitch, rng_, r.first, threshold, factor, stream_of(x.device()));
    }
  }
  void mask_elements(const Tensor& x, const Tensor& y) const {
    const uint32_t threshold = dropout_threshold(rate_);
    const double factor = 1.0 / (1.0 - rate_);
    const auto mask = [&](int64_t from, int64_t count, uint64_t draw) {
      if (x.dtype() == Dtype::f64) {
        for (int64_t i = 0; i < count; ++i) {
          y.data<double>()[from + i] =
              random_word(rng_, draw + static_cast<uint64_t>(i)) < threshold
                  ? 0.0
                  : factor * x.data<double>()[from + i];
        }
      } else {
        FOVEA_SIMD_CALL(dropout, at(y, from), at(x, from), x.dtype(), count, rng_.key, rng_.high,
                        draw, threshold, static_cast<float>(factor));
      }
    };
    for (const Rows& r : rows_) {
      parallel_for(0, r.count, 8192, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin, next = 0; i < end; i = next) {
          const int64_t row = i / r.row;
          next = std::min(end, (row + 1) * r.row);
          mask(r.at + i, next - i, r.first + static_cast<uint64_t>(row * r.pitch + i % r.row));
        }
      });
    }
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
              const bool keep =
                  random_word(rng_, rows_[0].first + static_cast<uint64_t>(i)) >= threshold;
              for (int64_t e = i * span; e < (i + 1) * span; ++e)
                y.data<T>()[e] =
                    keep ? T(static_cast<accumulator_t<T>>(x.data<T>()[e]) * factor) : T(0.0f);
            }
          });
    });
  }

  RngKey rng_;
  double rate_;
  std::vector<Rows> rows_;  // one of all elements, but for parts of sequences
  bool per_sample_;
};

Variable drop(const Variable& x, double rate, const Module& owner, bool per_sample,
              const SequencePart* part) {
  const char* purpose = per_sample ? "drop_path" : "dropout";
  FOVEA_CHECK(rate >= 0.0 && rate < 1.0, purpose, ": the rate must be in [0, 1), found ", rate);
  if (rate == 0.0 || !owner.training() || x.value().numel() == 0) return x;
  const int64_t sample = RandomScope::current().first_sample, numel = x.value().numel();
  const auto first =
      static_cast<uint64_t>(sample) * static_cast<uint64_t>(per_sample ? 1 : numel / x.dim(0));
  std::vector<Rows> rows{{0, numel, numel, 0, first}};
  if (part != nullptr) rows = rows_of(*part, x.shape(), sample);
  return record(make<DropFn>(current_rng(purpose, owner.path()), rate, std::move(rows), per_sample),
                x);
}

}  // namespace

Variable dropout(const Variable& x, double rate, const Module& owner, const SequencePart* part) {
  return drop(x, rate, owner, false, part);
}
Variable drop_path(const Variable& x, double rate, const Module& owner) {
  return drop(x, rate, owner, true, nullptr);
}

}  // namespace fovea::nn
