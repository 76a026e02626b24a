// SPDX-License-Identifier: Apache-2.0
#include "nn/mlp.h"

#include <cmath>

#include "autograd/function.h"
#include "core/ops/matmul.h"
#include "core/ops/reduce.h"
#include "nn/token_blocks.h"
#include "nn/weight_casts.h"

namespace fovea::nn {
namespace {

Tensor rows_of(const Tensor& x) { return x.reshape({-1, x.dim(-1)}); }

class GeluMlpFn final : public Function {
 public:
  const char* name() const override { return "gelu_mlp"; }

  Tensor forward(const Tensor& x, const Tensor& up, const Tensor& up_bias, const Tensor& down,
                 const Tensor& down_bias) {
    FOVEA_CHECK(up.rank() == 2 && down.rank() == 2 && x.rank() >= 1 && x.dim(-1) == up.dim(1) &&
                    up_bias.shape() == Shape{up.dim(0)} && down.dim(1) == up.dim(0),
                "gelu_mlp: x is ", x.shape(), ", up ", up.shape(), ", its bias ", up_bias.shape(),
                ", down ", down.shape(), "; expected [..., in], [F, in], [F] and [out, F]");
    master_ = up.dtype();
    const Tensor w1 = cast_weight(up, x.dtype()), w2 = cast_weight(down, x.dtype()),
                 rows = rows_of(x);
    Tensor pre, h;
    if (const auto fused = matmul_gelu(rows, w1.transpose(0, 1), up_bias)) {
      pre = fused->pre, h = fused->y;
    } else {
      pre = product(rows, w1, up_bias);
      h = activated(pre, Activation::gelu_tanh);
    }
    save(x, w1, pre, h, w2);
    Shape shape = x.shape();
    shape[-1] = w2.dim(0);
    return product(h, w2, down_bias).view(shape);
  }

  Tensors backward(const Tensors& dout) override {
    const auto [x, w1, pre, h, w2] = saved<5>();
    const Tensor dy = rows_of(dout[0].to(x.dtype()));
    Tensor dx, dw1, db1, dw2, db2;
    if (wanted(3)) dw2 = weight_gradient(dy, h);
    if (wanted(4)) db2 = sum(dy, 0, master_);
    if (!wanted(0) && !wanted(1) && !wanted(2)) return {dx, dw1, db1, dw2, db2};
    const Tensor dpre = activation_gradient(matmul(dy, w2), pre, Activation::gelu_tanh);
    if (wanted(2)) db1 = sum(dpre, 0, master_);
    if (wanted(0)) dx = matmul(dpre, w1).view(x.shape());
    if (wanted(1)) dw1 = weight_gradient(dpre, rows_of(x));
    return {dx, dw1, db1, dw2, db2};
  }

 private:
  // x w^T + bias
  static Tensor product(const Tensor& x, const Tensor& w, const Tensor& bias) {
    MatmulOptions options;
    options.bias = bias;
    return matmul(x, w.transpose(0, 1), options);
  }
  // dy^T x, as the masters are
  Tensor weight_gradient(const Tensor& dy, const Tensor& x) const {
    MatmulOptions options;
    options.dtype = master_;
    return matmul(dy.transpose(0, 1), x, options);
  }

  Dtype master_ = Dtype::f32;
};

}  // namespace

Variable gelu_mlp(const Variable& x, const Variable& up, const Variable& up_bias,
                  const Variable& down, const Variable& down_bias) {
  return by_blocks(x, [&](const Variable& rows) {
    return record(make<GeluMlpFn>(), rows, up, up_bias, down, down_bias);
  });
}

int64_t Mlp::hidden_channels(int64_t dim, const MlpOptions& options) {
  const double wanted = options.ratio * static_cast<double>(dim);
  if (options.activation != "swiglu") return static_cast<int64_t>(std::llround(wanted));
  return (static_cast<int64_t>(std::ceil(wanted * 2.0 / 3.0)) + 31) / 32 * 32;
}

Mlp::Mlp(int64_t dim, const MlpOptions& options, Init down_init)
    : activation_(options.activation),
      up_(dim, hidden_channels(dim, options) * (options.activation == "swiglu" ? 2 : 1),
          options.bias),
      down_(hidden_channels(dim, options), dim, options.bias, down_init) {
  if (activation_ != "swiglu") parse_activation(activation_);
  declare("up", up_);
  declare("down", down_);
}

Variable Mlp::forward(const Variable& x) const {
  if (activation_ == "gelu_tanh" && up_.bias.defined() &&
      x.value().device().kind == Device::Kind::cuda)
    return gelu_mlp(x, up_.weight, up_.bias, down_.weight, down_.bias);
  const Variable hidden = up_.forward(x);
  return down_.forward(activation_ == "swiglu" ? swiglu(hidden)
                                               : activate(hidden, parse_activation(activation_)));
}

double Mlp::flops_per_token() const {
  return 2.0 * static_cast<double>(up_.weight.value().numel() + down_.weight.value().numel());
}

}  // namespace fovea::nn
