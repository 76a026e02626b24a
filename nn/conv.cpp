// SPDX-License-Identifier: Apache-2.0
#include "nn/conv.h"

#include <cmath>

#include "autograd/ops.h"
#include "core/ops/reduce.h"
#include "nn/weight_casts.h"

namespace fovea::nn {
namespace {

class ConvFn final : public Function {
 public:
  explicit ConvFn(const ConvGeometry& geometry) : geometry_(geometry) {}
  const char* name() const override { return "conv"; }

  Tensor forward(const Tensor& x, const Tensor& weight, const Tensor& bias) {
    const Tensor w = cast_weight(weight, x.dtype());
    master_ = weight.dtype();
    save(x, w);
    return conv(x, w, bias, geometry_);
  }
  Tensors backward(const Tensors& dout) override {
    const auto [x, w] = saved<2>();
    const Tensor dy = dout[0].to(x.dtype());
    Tensor dx, dw, db;
    if (wanted(0)) dx = conv_input_gradient(dy, w, x.shape(), geometry_);
    if (wanted(1)) dw = conv_weight_gradient(dy, x, w.shape(), geometry_).to(master_);
    if (wanted(2)) db = sum(dy.permute({1, 0, 2, 3}).reshape({w.dim(0), -1}), 1, master_);
    return {dx, dw, db};
  }

 private:
  ConvGeometry geometry_;
  Dtype master_ = Dtype::f32;
};

void check(const char* layer, int64_t in, int64_t out, int64_t kernel, const ConvOptions& o) {
  FOVEA_CHECK(
      in >= 1 && out >= 1 && kernel >= 1 && o.stride >= 1 && o.dilation >= 1 && o.padding >= 0 &&
          o.groups >= 1,
      layer,
      ": sizes, stride, dilation and groups must be positive and padding not negative; found in ",
      in, ", out ", out, ", kernel ", kernel, ", stride ", o.stride, ", dilation ", o.dilation,
      ", padding ", o.padding, ", groups ", o.groups);
  FOVEA_CHECK(in % o.groups == 0 && out % o.groups == 0, layer, ": ", o.groups,
              " groups do not divide ", in, " input and ", out, " output channels");
}

Init fan_in(int64_t weights) {
  return Init::uniform(1.0 / std::sqrt(static_cast<double>(weights)));
}

}  // namespace

Variable conv2d(const Variable& x, const Variable& weight, const Variable& bias,
                const ConvGeometry& geometry) {
  return record(make<ConvFn>(geometry), x, weight, bias);
}

Conv2d::Conv2d(int64_t in, int64_t out, int64_t kernel, const ConvOptions& o) {
  check("conv2d", in, out, kernel, o);
  geometry_ = {{o.stride, o.stride},
               {o.dilation, o.dilation},
               {o.padding, o.padding},
               {o.padding, o.padding},
               o.groups};
  weight = declare("weight", {out, in / o.groups, kernel, kernel},
                   fan_in(in / o.groups * kernel * kernel));
  if (o.bias) bias = declare("bias", {out}, Init::zeros());
}

Conv1d::Conv1d(int64_t in, int64_t out, int64_t kernel, const ConvOptions& o, bool causal) {
  check("conv1d", in, out, kernel, o);
  FOVEA_CHECK(!causal || o.padding == 0,
              "conv1d: a causal convolution sets its own padding, found ", o.padding);
  const int64_t before = causal ? (kernel - 1) * o.dilation : o.padding;
  geometry_ = {{1, o.stride}, {1, o.dilation}, {0, before}, {0, causal ? 0 : o.padding}, o.groups};
  weight = declare("weight", {out, in / o.groups, kernel}, fan_in(in / o.groups * kernel));
  if (o.bias) bias = declare("bias", {out}, Init::zeros());
}

Variable Conv1d::forward(const Variable& x) const {
  FOVEA_CHECK(x.value().rank() == 3, "conv1d: expected x [B, C, N], found ", x.shape());
  const Variable y =
      conv2d(reshape(x, {x.dim(0), x.dim(1), 1, x.dim(2)}),
             reshape(weight, {weight.dim(0), weight.dim(1), 1, weight.dim(2)}), bias, geometry_);
  return reshape(y, {y.dim(0), y.dim(1), y.dim(3)});
}

}  // namespace fovea::nn
