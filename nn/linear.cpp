// SPDX-License-Identifier: Apache-2.0
#include "nn/linear.h"

#include "autograd/function.h"
#include "core/ops/matmul.h"
#include "core/ops/reduce.h"
#include "nn/token_blocks.h"
#include "nn/weight_casts.h"

namespace fovea::nn {
namespace {

class LinearFn final : public Function {
 public:
  const char* name() const override { return "linear"; }

  Tensor forward(const Tensor& x, const Tensor& weight, const Tensor& bias) {
    FOVEA_CHECK(weight.rank() == 2 && x.rank() >= 1 && x.dim(-1) == weight.dim(1), "linear: x is ",
                x.shape(), " but the weight is ", weight.shape(),
                " [out, in]; the last axis of x must be in");
    FOVEA_CHECK(!bias.defined() || bias.shape() == Shape{weight.dim(0)}, "linear: bias is ",
                bias.shape(), " but the weight is ", weight.shape(), " [out, in]");
    const Tensor w = cast_weight(weight, x.dtype());
    weight_dtype_ = weight.dtype();
    save(x, w);
    MatmulOptions options;
    options.bias = bias;
    return matmul(x, w.transpose(0, 1), options);
  }

  Tensors backward(const Tensors& dout) override {
    const auto [x, w] = saved<2>();
    const Tensor dy = dout[0].to(x.dtype());
    Tensor dx, dw, db;
    if (wanted(0)) dx = matmul(dy, w);
    if (wanted(1) || wanted(2)) {
      const Tensor dy_rows = dy.reshape({-1, w.dim(0)});
      if (wanted(1)) {
        MatmulOptions options;
        options.dtype = weight_dtype_;
        dw = matmul(dy_rows.transpose(0, 1), x.reshape({-1, w.dim(1)}), options);
      }
      if (wanted(2)) db = sum(dy_rows, 0, weight_dtype_);
    }
    return {dx, dw, db};
  }

 private:
  Dtype weight_dtype_ = Dtype::f32;
};

}  // namespace

Variable linear(const Variable& x, const Variable& weight, const Variable& bias) {
  return by_blocks(
      x, [&](const Variable& rows) { return record(make<LinearFn>(), rows, weight, bias); });
}

Linear::Linear(int64_t in, int64_t out, bool with_bias, Init init) {
  FOVEA_CHECK(in >= 1 && out >= 1, "linear: sizes must be positive, found in ", in, ", out ", out);
  weight = declare("weight", {out, in}, init);
  if (with_bias) bias = declare("bias", {out}, Init::zeros());
}

}  // namespace fovea::nn
