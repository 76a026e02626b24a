// SPDX-License-Identifier: Apache-2.0
#include "nn/norm.h"

#include <cmath>

#include "autograd/function.h"
#include "core/ops/elementwise.h"
#include "core/parallel.h"
#include "nn/cpu/kernels.h"
#include "nn/cuda/norm.h"
#include "nn/operands.h"
#include "nn/token_blocks.h"

namespace fovea::nn {
namespace {

// Rows whose dgamma and dbeta one partial sum holds: a function of the number of rows alone, so
// that the bits do not depend on the threads.
int64_t rows_per_block(int64_t rows) { return std::max<int64_t>(64, (rows + 63) / 64); }

// f64, the plain definition
void forward_f64(const double* s, const double* gamma, const double* beta, double* y, double* mean,
                 double* rstd, int64_t rows, int64_t n, double eps, bool rms) {
  for (int64_t r = 0; r < rows; ++r, s += n, y += n) {
    double m = 0.0, squares = 0.0;
    if (!rms) {
      for (int64_t i = 0; i < n; ++i) m += s[i];
      m /= static_cast<double>(n);
    }
    for (int64_t i = 0; i < n; ++i) squares += (s[i] - m) * (s[i] - m);
    mean[r] = m;
    rstd[r] = 1.0 / std::sqrt(squares / static_cast<double>(n) + eps);
    for (int64_t i = 0; i < n; ++i)
      y[i] = (s[i] - m) * rstd[r] * gamma[i] + (beta != nullptr ? beta[i] : 0.0);
  }
}

void backward_f64(const double* dy, const double* s, const double* gamma, const double* mean,
                  const double* rstd, double* ds, double* dgamma, double* dbeta, int64_t rows,
                  int64_t n, bool rms) {
  for (int64_t r = 0; r < rows; ++r, s += n, dy += n, ds += n) {
    double a = 0.0, b = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      const double xhat = (s[i] - mean[r]) * rstd[r], g = dy[i] * gamma[i];
      a += g;
      b += g * xhat;
      dgamma[i] += dy[i] * xhat;
      dbeta[i] += dy[i];
    }
    a = rms ? 0.0 : a / static_cast<double>(n);
    b /= static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i)
      ds[i] = rstd[r] * (dy[i] * gamma[i] - a - (s[i] - mean[r]) * rstd[r] * b);
  }
}

// Forward of x, or of x + delta (then the sum is the first output).
class NormFn final : public Function {
 public:
  NormFn(const NormOptions& options, bool with_delta)
      : options_(options), with_delta_(with_delta) {}
  const char* name() const override {
    return options_.kind == NormKind::rms ? "rms_norm" : "layer_norm";
  }

  Tensors forward(const Tensor& x_in, const Tensor& delta_in, const Tensor& gamma,
                  const Tensor& beta) {
    const Tensor x = x_in.contiguous();
    const int64_t n = x.rank() > 0 ? x.dim(-1) : 0;
    FOVEA_CHECK(x.rank() > 0 && gamma.shape() == Shape{n}, name(), ": x is ", x.shape(),
                " but weight is ", gamma.shape(), "; expected [", n, "]");
    FOVEA_CHECK(!beta.defined() || beta.shape() == gamma.shape(), name(), ": weight is ",
                gamma.shape(), " but bias is ", beta.shape());
    if (with_delta_) check_same_shape(name(), "x", x, "delta", delta_in);
    check_operands(name(), x, {{"delta", delta_in}, {"weight", gamma}, {"bias", beta}});
    const Device device = x.device();
    FOVEA_CHECK(device.is_cpu() || options_.out_dtype != Dtype::f64, name(),
                ": expected results of f32 or bf16 on device ", device, ", found f64");
    has_beta_ = beta.defined();
    rows_ = n > 0 ? x.numel() / n : 0;
    const bool wide = x.dtype() == Dtype::f64;
    const Dtype stats = wide ? Dtype::f64 : Dtype::f32;
    FOVEA_CHECK(gamma.dtype() == stats, name(), ": weight of ", x.dtype(), " rows must be ", stats,
                ", found ", gamma.dtype());
    const Tensor mean = Tensor::empty({rows_}, stats, device),
                 rstd = Tensor::empty({rows_}, stats, device);
    const Tensor y = Tensor::empty(x.shape(), wide ? Dtype::f64 : options_.out_dtype, device);
    Tensor s = x;
    const Tensor g = gamma.contiguous(), b = has_beta_ ? beta.contiguous() : Tensor();
    if (wide) {
      if (with_delta_) s = add(x, delta_in);
      forward_f64(s.data<double>(), g.data<double>(), has_beta_ ? b.data<double>() : nullptr,
                  y.data<double>(), mean.data<double>(), rstd.data<double>(), rows_, n,
                  options_.eps, options_.kind == NormKind::rms);
    } else {
      const Tensor delta = with_delta_ ? delta_in.contiguous() : Tensor();
      if (with_delta_) s = Tensor::empty_like(x);
      const NormForward call{x.raw(),
                             x.dtype(),
                             delta.raw(),
                             with_delta_ ? delta.dtype() : Dtype::f32,
                             s.raw(),
                             y.raw(),
                             y.dtype(),
                             g.data<float>(),
                             has_beta_ ? b.data<float>() : nullptr,
                             mean.data<float>(),
                             rstd.data<float>(),
                             n,
                             static_cast<float>(options_.eps),
                             options_.kind == NormKind::rms,
                             y.bytes() > kCacheBytes};
      if (device.is_cpu()) {
        if (call.rms) mean.zero_();
        parallel_for(
            0, rows_, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, n)),
            [&](int64_t begin, int64_t end) { FOVEA_SIMD_CALL(norm_forward, call, begin, end); });
      } else {
        FOVEA_GPU_CALL(device, norm_forward, call, rows_, stream_of(device));
      }
    }
    save(s, g, mean, rstd);
    return with_delta_ ? Tensors{s, y} : Tensors{y};
  }

  Tensors backward(const Tensors& dout) override {
    const auto [s, gamma, mean, rstd] = saved<4>();
    const Tensor& arrived = dout.back();
    const Tensor dsum =
        with_delta_ && dout[0].defined() ? dout[0].to(s.dtype()).contiguous() : Tensor();
    if (!arrived.defined()) return {dsum, dsum, Tensor(), Tensor()};
    const Tensor dy = arrived.contiguous();
    if (!s.device().is_cpu()) return backward_gpu(dy, dsum);
    const int64_t n = s.dim(-1);
    const Tensor dgamma = Tensor::zeros({n}, gamma.dtype()),
                 dbeta = Tensor::zeros({n}, gamma.dtype());
    Tensor ds = Tensor::empty(s.shape(), s.dtype());
    if (s.dtype() == Dtype::f64) {
      backward_f64(dy.data<double>(), s.data<double>(), gamma.data<double>(), mean.data<double>(),
                   rstd.data<double>(), ds.data<double>(), dgamma.data<double>(),
                   dbeta.data<double>(), rows_, n, options_.kind == NormKind::rms);
      if (dsum.defined()) ds = add(ds, dsum);
    } else {
      const NormBackward call = backward_call(dy, dsum, ds, ds.bytes() > kCacheBytes);
      const int64_t block = rows_per_block(rows_), blocks = (rows_ + block - 1) / block;
      const Tensor partial = Tensor::zeros({std::max<int64_t>(1, blocks), 2, n});
      parallel_for_each(0, blocks, [&](int64_t k) {
        float* sums = partial.data<float>() + k * 2 * n;
        FOVEA_SIMD_CALL(norm_backward, call, k * block, std::min(rows_, (k + 1) * block), sums,
                        sums + n);
      });
      for (int64_t k = 0; k < blocks; ++k) {
        const float* sums = partial.data<float>() + k * 2 * n;
        for (int64_t i = 0; i < n; ++i) {
          dgamma.data<float>()[i] += sums[i];
          dbeta.data<float>()[i] += sums[n + i];
        }
      }
    }
    return {ds, with_delta_ ? ds : Tensor(), dgamma, has_beta_ ? dbeta : Tensor()};
  }

 private:
  NormBackward backward_call(const Tensor& dy, const Tensor& dsum, const Tensor& ds,
                             bool stream) const {
    const auto [s, gamma, mean, rstd] = saved<4>();
    return {dy.raw(),
            dy.dtype(),
            s.raw(),
            s.dtype(),
            dsum.raw(),
            ds.raw(),
            gamma.data<float>(),
            mean.data<float>(),
            rstd.data<float>(),
            s.dim(-1),
            options_.kind == NormKind::rms,
            stream};
  }
  Tensors backward_gpu(const Tensor& dy, const Tensor& dsum) const {
    const auto [s, gamma, mean, rstd] = saved<4>();
    const Device device = s.device();
    const int64_t n = s.dim(-1);
    const Tensor ds = Tensor::empty_like(s), sums = Tensor::empty({2, n}, Dtype::f32, device),
                 partial = Tensor::empty({norm_parts(rows_, n), 2, n}, Dtype::f32, device);
    const NormBackward call = backward_call(dy, dsum, ds, false);
    FOVEA_GPU_CALL(device, norm_backward, call, sums.data<float>(), partial.data<float>(), rows_,
                   stream_of(device));
    return {ds, with_delta_ ? ds : Tensor(), sums.select(0, 0),
            has_beta_ ? sums.select(0, 1) : Tensor()};
  }

  NormOptions options_;
  bool with_delta_, has_beta_ = false;
  int64_t rows_ = 0;
};

}  // namespace

Variable norm(const Variable& x, const Variable& gamma, const Variable& beta,
              const NormOptions& options) {
  return by_blocks(x, [&](const Variable& rows) {
    return record(make<NormFn>(options, false), rows, Variable(), gamma, beta)[0];
  });
}

Variables add_norm(const Variable& x, const Variable& delta, const Variable& gamma,
                   const Variable& beta, const NormOptions& options) {
  return by_blocks(Variables{x, delta}, [&](const Variables& rows) {
    return record(make<NormFn>(options, true), rows[0], rows[1], gamma, beta);
  });
}

Norm::Norm(NormKind kind, int64_t channels, double eps, bool with_bias) : kind_(kind), eps_(eps) {
  weight = declare("weight", {channels}, Init::ones());
  if (kind == NormKind::layer && with_bias) bias = declare("bias", {channels}, Init::zeros());
}

}  // namespace fovea::nn
