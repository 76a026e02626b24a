// SPDX-License-Identifier: Apache-2.0
#include "nn/linear.h"

#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"

namespace fovea::nn {
namespace {

TEST(Linear, GradientsMatchCentralDifferences) {
  const auto leaf = [](const Shape& shape, const char* name) {
    const Tensor value = Tensor::empty(shape, Dtype::f64);
    fill_normal(value, RngKey(1, "test", name));
    return Variable(value, true);
  };
  gradcheck([](const Variables& in) { return linear(in[0], in[1], in[2]); },
            {leaf({2, 3, 5}, "x"), leaf({4, 5}, "w"), leaf({4}, "b")});
  gradcheck([](const Variables& in) { return linear(in[0], in[1], Variable()); },
            {leaf({7, 5}, "x"), leaf({1, 5}, "w")});
  // a strided input
  gradcheck([](const Variables& in) { return linear(transpose(in[0], 0, 1), in[1], Variable()); },
            {leaf({5, 3}, "x"), leaf({2, 5}, "w")});
}

TEST(Linear, Bf16ComputesInBf16AndReturnsF32WeightGradients) {
  Linear layer(33, 17);
  layer.initialise(1);
  const Tensor x = Tensor::empty({5, 33});
  fill_normal(x, RngKey(2, "test", "x"));
  const Variable out = layer.forward(Variable(x.to(Dtype::bf16)));
  EXPECT_EQ(out.dtype(), Dtype::bf16);
  const auto exact = layer.forward(Variable(x)).value().to_vector<float>(),
             rounded = out.value().to_vector<float>();
  for (size_t i = 0; i < exact.size(); ++i) EXPECT_NEAR(rounded[i], exact[i], 0.02 * 0.02 * 33);
  sum_all(cast(out, Dtype::f32)).backward();
  EXPECT_EQ(layer.weight.grad().dtype(), Dtype::f32);
  EXPECT_EQ(layer.bias.grad().to_vector<float>(), std::vector<float>(17, 5.0f));
}

TEST(Linear, ShapesThatDoNotFitAreNamed) {
  Linear layer(4, 2);
  try {
    layer.forward(Variable(Tensor::zeros({3, 5})));
    FAIL() << "accepted x [3, 5] with weight [2, 4]";
  } catch (const Error& error) {
    EXPECT_STREQ(
        error.what(),
        "linear: x is [3, 5] but the weight is [2, 4] [out, in]; the last axis of x must be in");
  }
}

}  // namespace
}  // namespace fovea::nn
