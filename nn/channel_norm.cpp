// SPDX-License-Identifier: Apache-2.0
#include "nn/channel_norm.h"

#include <cmath>

#include "autograd/function.h"
#include "core/parallel.h"
#include "nn/cpu/kernels.h"
#include "nn/cuda/channel_norm.h"
#include "nn/operands.h"

namespace fovea::nn {
namespace {

// A tensor [B, C, ...] as B C rows of `size` values; kernels in f32 and bf16, plain loops in f64.
struct Rows {
  Tensor values;
  int64_t size;
  bool wide() const { return values.dtype() == Dtype::f64; }
  void* at(int64_t row) const {
    return static_cast<char*>(values.raw()) + row * size * size_of(values.dtype());
  }
  double* f64(int64_t row) const { return static_cast<double*>(at(row)); }
};

double total(const Rows& x, int64_t row) {
  if (!x.wide())
    return static_cast<double>(FOVEA_SIMD_CALL(row_sum, x.at(row), x.values.dtype(), x.size));
  double sum = 0.0;
  for (int64_t i = 0; i < x.size; ++i) sum += x.f64(row)[i];
  return sum;
}

double squares(const Rows& x, int64_t row, double mean) {
  if (!x.wide())
    return static_cast<double>(FOVEA_SIMD_CALL(row_squares, x.at(row), x.values.dtype(), x.size,
                                               static_cast<float>(mean)));
  double sum = 0.0;
  for (int64_t i = 0; i < x.size; ++i) sum += (x.f64(row)[i] - mean) * (x.f64(row)[i] - mean);
  return sum;
}

void affine(const Rows& y, const Rows& x, int64_t row, double mean, double scale, double shift) {
  if (!x.wide()) {
    FOVEA_SIMD_CALL(row_affine, y.at(row), x.at(row), x.values.dtype(), x.size,
                    static_cast<float>(mean), static_cast<float>(scale), static_cast<float>(shift));
    return;
  }
  for (int64_t i = 0; i < x.size; ++i) y.f64(row)[i] = scale * (x.f64(row)[i] - mean) + shift;
}

// {sum dy, sum dy (x - mean)}
std::array<double, 2> gradient_sums(const Rows& dy, const Rows& x, int64_t row, double mean) {
  if (!x.wide()) {
    float sums[2];
    FOVEA_SIMD_CALL(row_gradient_sums, dy.at(row), x.at(row), x.values.dtype(), x.size,
                    static_cast<float>(mean), sums);
    return {static_cast<double>(sums[0]), static_cast<double>(sums[1])};
  }
  std::array<double, 2> sums{};
  for (int64_t i = 0; i < x.size; ++i) {
    sums[0] += dy.f64(row)[i];
    sums[1] += dy.f64(row)[i] * (x.f64(row)[i] - mean);
  }
  return sums;
}

// dx = a dy + b (x - mean) + c
void norm_gradient(const Rows& dx, const Rows& dy, const Rows& x, int64_t row, double mean,
                   double a, double b, double c) {
  if (!x.wide()) {
    FOVEA_SIMD_CALL(row_norm_gradient, dx.at(row), dy.at(row), x.at(row), x.values.dtype(), x.size,
                    static_cast<float>(mean), static_cast<float>(a), static_cast<float>(b),
                    static_cast<float>(c));
    return;
  }
  for (int64_t i = 0; i < x.size; ++i)
    dx.f64(row)[i] = a * dy.f64(row)[i] + b * (x.f64(row)[i] - mean) + c;
}

// The values of a set share a mean and a variance: with row (b, c), the set of batch norm is c and
// that of group norm is (b, c's group). y = gamma rstd (x - mean) + beta.
class ChannelNormFn final : public Function {
 public:
  // groups 0: over the batch
  ChannelNormFn(int64_t groups, double eps) : groups_(groups), eps_(eps) {}
  ChannelNormFn(const Tensor& mean, const Tensor& variance, double eps)
      : groups_(0), eps_(eps), fixed_(true), mean_(mean), variance_(variance) {}
  const char* name() const override { return groups_ > 0 ? "group_norm" : "batch_norm"; }
  const Tensor& mean() const { return mean_; }  // [sets], f64 (GPU devices: f32)
  const Tensor& variance() const { return variance_; }
  int64_t set_size() const { return set_size_; }

  Tensor forward(const Tensor& x_in, const Tensor& gamma, const Tensor& beta) {
    FOVEA_CHECK(x_in.rank() >= 2 && x_in.numel() > 0, name(),
                ": expected x [B, C, ...] with at least one value, found ", x_in.shape());
    check_operands(
        name(), x_in,
        {{"weight", gamma}, {"bias", beta}, {"the mean", mean_}, {"the variance", variance_}});
    batch_ = x_in.dim(0);
    channels_ = x_in.dim(1);
    const Dtype master = x_in.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
    for (const Tensor& p : {gamma, beta}) {
      FOVEA_CHECK(p.shape() == Shape{channels_} && p.dtype() == master, name(), ": x is ",
                  x_in.shape(), " of ", x_in.dtype(), "; expected weight and bias [", channels_,
                  "] of ", master, ", found ", p.shape(), " of ", p.dtype());
    }
    FOVEA_CHECK(groups_ == 0 || channels_ % groups_ == 0, name(), ": ", groups_,
                " groups do not divide ", channels_, " channels");
    FOVEA_CHECK(
        !fixed_ || (mean_.shape() == Shape{channels_} && variance_.shape() == Shape{channels_}),
        name(), ": x is ", x_in.shape(), " but the statistics are ", mean_.shape(), " and ",
        variance_.shape());
    const Rows x{x_in.contiguous(), x_in.numel() / (batch_ * channels_)};
    sets_ = groups_ > 0 ? batch_ * groups_ : channels_;
    set_size_ = x_in.numel() / sets_;
    if (!x_in.device().is_cpu()) return forward_gpu(x.values, gamma, beta);
    if (fixed_) {
      mean_ = mean_.to(Dtype::f64);
      variance_ = variance_.to(Dtype::f64);
    } else {
      measure(x);
    }
    const Tensor rstd = Tensor::empty({sets_}, Dtype::f64);
    for (int64_t s = 0; s < sets_; ++s)
      rstd.data<double>()[s] = 1.0 / std::sqrt(variance_.data<double>()[s] + eps_);
    const std::vector<double> g = gamma.to_vector<double>(), b = beta.to_vector<double>();
    const Rows y{Tensor::empty(x_in.shape(), x_in.dtype()), x.size};
    over_rows(x.size, [&](int64_t row) {
      const int64_t s = set_of(row);
      const auto c = static_cast<size_t>(row % channels_);
      affine(y, x, row, mean_.data<double>()[s], g[c] * rstd.data<double>()[s], b[c]);
    });
    save(x.values, gamma, rstd);
    return y.values;
  }

  // With s1 = sum dy and s2 = sum dy (x - mean) of a row, and M values a set:
  //   dx = rstd (gamma dy - A - xhat B),  A = sum gamma s1 / M,  B = sum gamma s2 rstd / M  (both 0
  //   with fixed statistics)
  Tensors backward(const Tensors& dout) override {
    const auto [x_saved, gamma, rstd_saved] = saved<3>();
    if (!x_saved.device().is_cpu()) return backward_gpu(dout[0].to(x_saved.dtype()).contiguous());
    const Tensor rstd = rstd_saved;
    const int64_t size = x_saved.numel() / (batch_ * channels_);
    const Rows x{x_saved, size}, dy{dout[0].to(x_saved.dtype()).contiguous(), size};
    const std::vector<double> g = gamma.to_vector<double>();
    std::vector<std::array<double, 2>> sums(static_cast<size_t>(batch_ * channels_));
    over_rows(size, [&](int64_t row) {
      sums[static_cast<size_t>(row)] = gradient_sums(dy, x, row, mean_.data<double>()[set_of(row)]);
    });
    std::vector<double> dgamma(g.size()), dbeta(g.size()), a(static_cast<size_t>(sets_)),
        b(static_cast<size_t>(sets_));
    for (int64_t row = 0; row < batch_ * channels_; ++row) {
      const auto c = static_cast<size_t>(row % channels_), s = static_cast<size_t>(set_of(row));
      const auto [s1, s2] = sums[static_cast<size_t>(row)];
      const double r = rstd.data<double>()[s];
      dbeta[c] += s1;
      dgamma[c] += r * s2;
      if (fixed_) continue;
      a[s] += g[c] * s1 / static_cast<double>(set_size_);
      b[s] += g[c] * s2 * r / static_cast<double>(set_size_);
    }
    Rows dx{Tensor(), size};
    if (wanted(0)) {
      dx.values = Tensor::empty(x.values.shape(), x.values.dtype());
      over_rows(size, [&](int64_t row) {
        const auto c = static_cast<size_t>(row % channels_), s = static_cast<size_t>(set_of(row));
        const double r = rstd.data<double>()[s];
        norm_gradient(dx, dy, x, row, mean_.data<double>()[s], r * g[c], -r * r * b[s], -r * a[s]);
      });
    }
    return {dx.values, Tensor::from(dgamma, gamma.shape()).to(gamma.dtype()),
            Tensor::from(dbeta, gamma.shape()).to(gamma.dtype())};
  }

 private:
  ChannelRows gpu_rows(const Tensor& x) const {
    return {x.dtype(), batch_, channels_, x.numel() / (batch_ * channels_), groups_};
  }
  Tensor forward_gpu(const Tensor& x, const Tensor& gamma_in, const Tensor& beta) {
    const Device device = x.device();
    const ChannelRows rows = gpu_rows(x);
    const Tensor gamma = gamma_in.contiguous(), y = Tensor::empty_like(x),
                 rstd = Tensor::empty({sets_}, Dtype::f32, device);
    if (fixed_) {
      mean_ = mean_.to(Dtype::f32).contiguous();
      variance_ = variance_.to(Dtype::f32).contiguous();
      FOVEA_GPU_CALL(device, inverse_deviation, rstd.data<float>(), variance_.data<float>(), sets_,
                     static_cast<float>(eps_), stream_of(device));
    } else {
      mean_ = Tensor::empty({sets_}, Dtype::f32, device);
      variance_ = Tensor::empty({sets_}, Dtype::f32, device);
      const Tensor moments = Tensor::empty({rows.rows(), 2}, Dtype::f32, device);
      FOVEA_GPU_CALL(device, channel_statistics, mean_.data<float>(), variance_.data<float>(),
                     rstd.data<float>(), moments.data<float>(), x.raw(), rows,
                     static_cast<float>(eps_), stream_of(device));
    }
    FOVEA_GPU_CALL(device, channel_norm_forward, y.raw(), x.raw(), mean_.data<float>(),
                   rstd.data<float>(), gamma.data<float>(), beta.contiguous().data<float>(), rows,
                   stream_of(device));
    save(x, gamma, rstd);
    return y;
  }
  Tensors backward_gpu(const Tensor& dy) {
    const auto [x, gamma, rstd] = saved<3>();
    const Device device = x.device();
    const ChannelRows rows = gpu_rows(x);
    const Tensor dgamma = Tensor::empty_like(gamma), dbeta = Tensor::empty_like(gamma),
                 sums = Tensor::empty({rows.rows(), 2}, Dtype::f32, device),
                 means = Tensor::empty({sets_, 2}, Dtype::f32, device),
                 dx = wanted(0) ? Tensor::empty_like(x) : Tensor();
    FOVEA_GPU_CALL(device, channel_norm_backward, dx.raw(), dgamma.data<float>(),
                   dbeta.data<float>(), sums.data<float>(), means.data<float>(), dy.raw(), x.raw(),
                   mean_.data<float>(), rstd.data<float>(), gamma.data<float>(), rows, fixed_,
                   stream_of(device));
    return {dx, dgamma, dbeta};
  }

  int64_t set_of(int64_t row) const {
    const int64_t c = row % channels_;
    return groups_ > 0 ? row / channels_ * groups_ + c / (channels_ / groups_) : c;
  }
  template <typename F>
  void over_rows(int64_t size, F&& f) const {
    parallel_for(0, batch_ * channels_, std::max<int64_t>(1, 16384 / size),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t row = begin; row < end; ++row) f(row);
                 });
  }
  // Two passes: the mean first, then the squares about it. Rows add up in order, whatever the
  // threads.
  void measure(const Rows& x) {
    mean_ = Tensor::zeros({sets_}, Dtype::f64);
    variance_ = Tensor::zeros({sets_}, Dtype::f64);
    std::vector<double> part(static_cast<size_t>(batch_ * channels_));
    const auto gather = [&](const Tensor& into) {
      for (int64_t row = 0; row < batch_ * channels_; ++row)
        into.data<double>()[set_of(row)] +=
            part[static_cast<size_t>(row)] / static_cast<double>(set_size_);
    };
    over_rows(x.size, [&](int64_t row) { part[static_cast<size_t>(row)] = total(x, row); });
    gather(mean_);
    over_rows(x.size, [&](int64_t row) {
      part[static_cast<size_t>(row)] = squares(x, row, mean_.data<double>()[set_of(row)]);
    });
    gather(variance_);
  }

  int64_t groups_;
  double eps_;
  bool fixed_ = false;
  Tensor mean_, variance_;
  int64_t batch_ = 0, channels_ = 0, sets_ = 0, set_size_ = 0;
};

}  // namespace

Variable group_norm(const Variable& x, const Variable& gamma, const Variable& beta, int64_t groups,
                    double eps) {
  FOVEA_CHECK(groups >= 1, "group_norm: expected at least one group, found ", groups);
  return record(make<ChannelNormFn>(groups, eps), x, gamma, beta);
}

Variable batch_norm(const Variable& x, const Variable& gamma, const Variable& beta, double eps,
                    ChannelStatistics* statistics) {
  const auto fn = make<ChannelNormFn>(int64_t{0}, eps);
  const Variable y = record(fn, x, gamma, beta);
  if (statistics != nullptr) *statistics = {fn->mean(), fn->variance(), fn->set_size()};
  return y;
}

Variable batch_norm_fixed(const Variable& x, const Variable& gamma, const Variable& beta,
                          const Tensor& mean, const Tensor& variance, double eps) {
  return record(make<ChannelNormFn>(mean, variance, eps), x, gamma, beta);
}

GroupNorm::GroupNorm(int64_t groups, int64_t channels, double eps) : groups_(groups), eps_(eps) {
  FOVEA_CHECK(groups >= 1 && channels >= 1 && channels % groups == 0, "group_norm: ", groups,
              " groups do not divide ", channels, " channels");
  weight = declare("weight", {channels}, Init::ones());
  bias = declare("bias", {channels}, Init::zeros());
}

BatchNorm2d::BatchNorm2d(int64_t channels, double eps, double momentum)
    : running_mean(Tensor::zeros({channels})),
      running_variance(Tensor::full({channels}, 1.0)),
      eps_(eps),
      momentum_(momentum) {
  weight = declare("weight", {channels}, Init::ones());
  bias = declare("bias", {channels}, Init::zeros());
  declare_buffer("running_mean", running_mean);
  declare_buffer("running_variance", running_variance);
}

Variable BatchNorm2d::forward(const Variable& x) {
  FOVEA_CHECK(x.value().rank() == 4, "batch_norm2d: expected x [B, C, H, W], found ", x.shape());
  if (!training()) return batch_norm_fixed(x, weight, bias, running_mean, running_variance, eps_);
  ChannelStatistics batch;
  FOVEA_CHECK(
      x.value().numel() > x.dim(1),
      "batch_norm2d: in training a channel needs more than one value for its variance, found x ",
      x.shape());
  const Variable y = batch_norm(x, weight, bias, eps_, &batch);
  if (!grad_enabled()) return y;
  const auto move = [&](const Tensor& running, const Tensor& found, double factor) {
    if (const Device device = running.device(); !device.is_cpu()) {
      FOVEA_GPU_CALL(device, move_statistics, running.data<float>(), found.data<float>(),
                     running.numel(), static_cast<float>(momentum_), static_cast<float>(factor),
                     stream_of(device));
      return;
    }
    std::vector<double> values = running.to_vector<double>();
    for (size_t c = 0; c < values.size(); ++c)
      values[c] += momentum_ * (found.data<double>()[c] * factor - values[c]);
    running.copy_(Tensor::from(values, running.shape()));
  };
  move(running_mean, batch.mean, 1.0);
  move(running_variance, batch.variance,
       static_cast<double>(batch.count) / static_cast<double>(batch.count - 1));
  return y;
}

}  // namespace fovea::nn
