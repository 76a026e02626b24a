// SPDX-License-Identifier: Apache-2.0
#include "nn/activation.h"

#include <cmath>
#include <numbers>
#include <string>

#include "autograd/function.h"
#include "core/parallel.h"
#include "nn/cpu/kernels.h"
#include "nn/cuda/elementwise.h"
#include "nn/operands.h"

namespace fovea::nn {
namespace {

constexpr int64_t kGrain = 16384;

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// value and derivative in f64
std::pair<double, double> evaluate(double x, Activation kind) {
  switch (kind) {
    case Activation::relu:
      return {std::max(x, 0.0), x > 0.0 ? 1.0 : 0.0};
    case Activation::silu:
      return {x * sigmoid(x), sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)))};
    case Activation::gelu: {
      const double phi = 0.5 * (1.0 + std::erf(x / std::numbers::sqrt2));
      return {x * phi, phi + x * std::exp(-0.5 * x * x) / std::sqrt(2.0 * std::numbers::pi)};
    }
    case Activation::gelu_tanh: {
      const double a = std::sqrt(2.0 / std::numbers::pi),
                   t = std::tanh(a * (x + 0.044715 * x * x * x));
      return {0.5 * x * (1.0 + t),
              0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * a * (1.0 + 3.0 * 0.044715 * x * x)};
    }
  }
  detail::fail("activation: unknown kind");
}

ActivationKernel kernel_of(Activation kind) {
  switch (kind) {
    case Activation::relu:
      return ActivationKernel::relu;
    case Activation::gelu:
      return ActivationKernel::gelu;
    case Activation::gelu_tanh:
      return ActivationKernel::gelu_tanh;
    case Activation::silu:
      return ActivationKernel::silu;
  }
  detail::fail("activation: unknown kind");
}

void* at(const Tensor& t, int64_t bytes) { return static_cast<char*>(t.raw()) + bytes; }

class ActivationFn final : public Function {
 public:
  explicit ActivationFn(Activation kind) : kind_(kind) {}
  const char* name() const override { return "activation"; }

  Tensor forward(const Tensor& input) {
    const Tensor x = input.contiguous();
    save(x);
    return activated(x, kind_);
  }
  Tensors backward(const Tensors& dout) override {
    const auto [x] = saved<1>();
    return {activation_gradient(dout[0], x, kind_)};
  }

 private:
  Activation kind_;
};

class SwigluFn final : public Function {
 public:
  const char* name() const override { return "swiglu"; }

  Tensor forward(const Tensor& input) {
    const Tensor x = input.contiguous();
    FOVEA_CHECK(x.rank() >= 1 && x.dim(-1) % 2 == 0, "swiglu: the last axis of ", x.shape(),
                " must be even");
    check_operands(name(), x);
    save(x);
    Shape shape = x.shape();
    shape[-1] /= 2;
    const Tensor y = Tensor::empty(shape, x.dtype(), x.device());
    const int64_t f = shape[-1], rows = f > 0 ? y.numel() / f : 0, size = size_of(x.dtype());
    if (const Device device = x.device(); !device.is_cpu()) {
      FOVEA_GPU_CALL(device, swiglu_forward, y.raw(), x.raw(), x.dtype(), rows, f,
                     stream_of(device));
      return y;
    }
    parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, f)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t r = begin; r < end; ++r) {
                     if (x.dtype() == Dtype::f64) {
                       const double* row = x.data<double>() + r * 2 * f;
                       for (int64_t i = 0; i < f; ++i)
                         y.data<double>()[r * f + i] =
                             evaluate(row[i], Activation::silu).first * row[f + i];
                     } else {
                       FOVEA_SIMD_CALL(swiglu_forward, at(y, r * f * size), at(x, r * 2 * f * size),
                                       x.dtype(), f);
                     }
                   }
                 });
    return y;
  }
  Tensors backward(const Tensors& dout) override {
    const auto [x] = saved<1>();
    const Tensor dy = dout[0].to(x.dtype()).contiguous(), dx = Tensor::empty_like(x);
    const int64_t f = dy.dim(-1), rows = f > 0 ? dy.numel() / f : 0, size = size_of(x.dtype());
    if (const Device device = x.device(); !device.is_cpu()) {
      FOVEA_GPU_CALL(device, swiglu_backward, dx.raw(), dy.raw(), x.raw(), x.dtype(), rows, f,
                     stream_of(device));
      return {dx};
    }
    parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, f)),
                 [&, x = x](int64_t begin, int64_t end) {
                   for (int64_t r = begin; r < end; ++r) {
                     if (x.dtype() == Dtype::f64) {
                       const double *row = x.data<double>() + r * 2 * f,
                                    *d = dy.data<double>() + r * f;
                       double* to = dx.data<double>() + r * 2 * f;
                       for (int64_t i = 0; i < f; ++i) {
                         const auto [value, slope] = evaluate(row[i], Activation::silu);
                         to[i] = d[i] * row[f + i] * slope;
                         to[f + i] = d[i] * value;
                       }
                     } else {
                       FOVEA_SIMD_CALL(swiglu_backward, at(dx, r * 2 * f * size),
                                       at(dy, r * f * size), at(x, r * 2 * f * size), x.dtype(), f);
                     }
                   }
                 });
    return {dx};
  }
};

}  // namespace

Tensor activated(const Tensor& input, Activation kind) {
  const Tensor x = input.contiguous();
  check_operands("activation", x);
  const Tensor y = Tensor::empty_like(x);
  if (const Device device = x.device(); !device.is_cpu()) {
    FOVEA_GPU_CALL(device, activation_forward, y.raw(), x.raw(), x.dtype(), x.numel(),
                   kernel_of(kind), stream_of(device));
    return y;
  }
  const int64_t size = size_of(x.dtype());
  parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    if (x.dtype() == Dtype::f64) {
      for (int64_t i = begin; i < end; ++i)
        y.data<double>()[i] = evaluate(x.data<double>()[i], kind).first;
    } else {
      FOVEA_SIMD_CALL(activation_forward, at(y, begin * size), at(x, begin * size), x.dtype(),
                      end - begin, kernel_of(kind));
    }
  });
  return y;
}

Tensor activation_gradient(const Tensor& dout, const Tensor& input, Activation kind) {
  const Tensor x = input.contiguous();
  const Tensor dy = dout.to(x.dtype()).contiguous(), dx = Tensor::empty_like(x);
  if (const Device device = x.device(); !device.is_cpu()) {
    FOVEA_GPU_CALL(device, activation_backward, dx.raw(), dy.raw(), x.raw(), x.dtype(), x.numel(),
                   kernel_of(kind), stream_of(device));
    return dx;
  }
  const int64_t size = size_of(x.dtype());
  parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    if (x.dtype() == Dtype::f64) {
      for (int64_t i = begin; i < end; ++i)
        dx.data<double>()[i] = dy.data<double>()[i] * evaluate(x.data<double>()[i], kind).second;
    } else {
      FOVEA_SIMD_CALL(activation_backward, at(dx, begin * size), at(dy, begin * size),
                      at(x, begin * size), x.dtype(), end - begin, kernel_of(kind));
    }
  });
  return dx;
}

Activation parse_activation(std::string_view name) {
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "silu") return Activation::silu;
  detail::fail("activation: expected relu, gelu, gelu_tanh or silu, found \"", std::string(name),
               '"');
}

Variable activate(const Variable& x, Activation kind) {
  return record(make<ActivationFn>(kind), x);
}
Variable swiglu(const Variable& x) { return record(make<SwigluFn>(), x); }

}  // namespace fovea::nn
