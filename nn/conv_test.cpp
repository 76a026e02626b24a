// SPDX-License-Identifier: Apache-2.0
#include "nn/conv.h"

#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "core/testing/conv_cases.h"
#include "nn/test_util.h"

namespace fovea::nn {
namespace {

TEST(Conv, Gradients) {
  for (const ConvCase& c : conv_cases()) {
    SCOPED_TRACE(c.name);
    gradcheck([&](const Variables& in) { return conv2d(in[0], in[1], in[2], c.geometry); },
              {Variable(random_tensor(c.x, "x"), true), Variable(random_tensor(c.w, "w"), true),
               Variable(random_tensor({c.w[0]}, "b"), true)});
  }
}

TEST(Conv, LowerPrecisionFollowsTheDefinition) {
  for (const ConvCase& c : conv_cases()) {
    SCOPED_TRACE(c.name);
    // values that bf16 holds exactly
    const Tensor x = random_tensor(c.x, "x", Dtype::bf16), w = random_tensor(c.w, "w", Dtype::bf16),
                 b = random_tensor({c.w[0]}, "b", Dtype::bf16);
    const auto run = [&](Dtype compute, Dtype master) {
      const Variable vx(x.to(compute), true), vw(w.to(master), true), vb(b.to(master), true);
      const Variable y = conv2d(vx, vw, vb, c.geometry);
      EXPECT_EQ(y.dtype(), compute);
      sum_all(mul(y, y)).backward();
      EXPECT_EQ(vw.grad().dtype(), master);
      return Tensors{y.value(), vx.grad(), vw.grad(), vb.grad()};
    };
    const Tensors reference = run(Dtype::f64, Dtype::f64), single = run(Dtype::f32, Dtype::f32),
                  half = run(Dtype::bf16, Dtype::f32);
    for (size_t i = 0; i < reference.size(); ++i) {
      EXPECT_LT(relative_error(single[i], reference[i]), 1e-5) << i;
      EXPECT_LT(relative_error(half[i], reference[i]), 1e-2) << i;
    }
  }
}

TEST(Conv, AChannelWithADeltaKernelShifts) {
  Conv1d layer(2, 2, 3, {.groups = 2}, /*causal=*/true);
  layer.initialise(1);
  layer.weight.value().copy_(Tensor::zeros({2, 1, 3}));
  layer.weight.value().data<float>()[0] = 1.0f;  // channel 0: two positions back
  layer.weight.value().data<float>()[5] = 1.0f;  // channel 1: here
  const Tensor x = random_tensor({1, 2, 6}, "x", Dtype::f32);
  const auto in = x.to_vector<float>(), out = layer.forward(Variable(x)).value().to_vector<float>();
  for (size_t n = 0; n < 6; ++n) {
    EXPECT_EQ(out[n], n < 2 ? 0.0f : in[n - 2]);
    EXPECT_EQ(out[6 + n], in[6 + n]);
  }
}

TEST(Conv, ShapesThatDoNotFitAreNamed) {
  Conv2d layer(3, 4, 3);
  EXPECT_NE(error_of([&] {
              layer.forward(Variable(Tensor::zeros({1, 2, 8, 8})));
            }).find("x is [1, 2, 8, 8] and the weight [4, 3, 3, 3] in 1 groups"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              layer.forward(Variable(Tensor::zeros({1, 3, 2, 8})));
            }).find("a kernel that spans 3 does not fit into 2"),
            std::string::npos);
  EXPECT_NE(error_of([] { Conv2d(3, 4, 3, {.groups = 2}); }).find("2 groups do not divide 3 input"),
            std::string::npos);
  EXPECT_NE(error_of([] { Conv1d(3, 4, 0); }).find("kernel 0"), std::string::npos);
  EXPECT_NE(error_of([] { Conv1d(3, 4, 3, {.padding = 1}, true); }).find("sets its own padding"),
            std::string::npos);
}

}  // namespace
}  // namespace fovea::nn
