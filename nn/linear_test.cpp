// SPDX-License-Identifier: Apache-2.0
#include "nn/linear.h"

#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "nn/weight_casts.h"

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

TEST(WeightCasts, AreMadeOnceWhileOneLives) {
  const Tensor w = Tensor::full({4, 6}, 1.25);
  const Tensor alone = cast_weight(w, Dtype::bf16);
  EXPECT_FALSE(cast_weight(w, Dtype::bf16).shares_storage_with(alone));
  EXPECT_TRUE(cast_weight(w, Dtype::f32).shares_storage_with(w));
  Tensor first;
  {
    const WeightCasts casts;
    first = cast_weight(w, Dtype::bf16);
    EXPECT_TRUE(cast_weight(w, Dtype::bf16).shares_storage_with(first));
    // Others that begin at the same place.
    EXPECT_EQ(cast_weight(w.slice(0, 0, 2), Dtype::bf16).shape(), (Shape{2, 6}));
    EXPECT_EQ(cast_weight(w.transpose(0, 1), Dtype::bf16).shape(), (Shape{6, 4}));
    EXPECT_EQ(cast_weight(w, Dtype::f64).dtype(), Dtype::f64);
    EXPECT_EQ(cast_weight(w, Dtype::bf16).to_vector<float>(), first.to_vector<float>());
    const WeightCasts inner;
    EXPECT_FALSE(cast_weight(w, Dtype::bf16).shares_storage_with(first));
    // A weight that is gone does not give its place in memory, or its copy, to another.
    std::vector<const void*> places;
    for (int i = 0; i < 3; ++i) {
      const Tensor short_lived = Tensor::full({4, 6}, i);
      places.push_back(short_lived.raw());
      EXPECT_EQ(cast_weight(short_lived, Dtype::bf16).to_vector<float>()[23], i);
    }
    EXPECT_NE(places[0], places[1]);
  }
  w.fill_(2.5);
  EXPECT_EQ(cast_weight(w, Dtype::bf16).to_vector<float>()[0], 2.5f);
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
