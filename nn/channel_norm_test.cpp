// SPDX-License-Identifier: Apache-2.0
#include "nn/channel_norm.h"

#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "autograd/recompute.h"
#include "core/parallel.h"
#include "nn/norm.h"
#include "nn/test_util.h"

namespace fovea::nn {
namespace {

TEST(ChannelNorm, Gradients) {
  const Variables inputs{leaf({3, 4, 2, 3}, "x"), leaf({4}, "g"), leaf({4}, "b")};
  for (int64_t groups : {1, 2, 4}) {
    gradcheck([&](const Variables& in) { return group_norm(in[0], in[1], in[2], groups); }, inputs);
  }
  gradcheck([](const Variables& in) { return batch_norm(in[0], in[1], in[2]); }, inputs);
  const Tensor mean = random_tensor({4}, "m"), variance = Tensor::full({4}, 0.7, Dtype::f64);
  gradcheck(
      [&](const Variables& in) { return batch_norm_fixed(in[0], in[1], in[2], mean, variance); },
      inputs);
  gradcheck([](const Variables& in) { return batch_norm(in[0], in[1], in[2]); },
            {leaf({5, 2}, "x"), leaf({2}, "g"), leaf({2}, "b")});
}

TEST(ChannelNorm, LowerPrecisionFollowsF64InEverySize) {
  for (int64_t width : {1, 2, 7, 16, 17, 33, 64, 100}) {
    for (int64_t groups : {0, 1, 3}) {
      if (groups == 3 && width == 1)
        continue;  // two values a set become -1 and 1: dx is all cancellation
      const Shape shape{4, 6, width};
      const Tensor x = random_tensor(shape, "x", Dtype::bf16),
                   u = random_tensor(shape, "u", Dtype::bf16);
      const auto run = [&](Dtype dtype, Dtype master) {
        const Variable vx(x.to(dtype), true), g = leaf({6}, "g", master),
                                              b = leaf({6}, "b", master);
        const Variable y = groups == 0 ? batch_norm(vx, g, b) : group_norm(vx, g, b, groups);
        EXPECT_EQ(y.dtype(), dtype);
        y.backward(u.to(dtype));
        return Tensors{y.value(), vx.grad(), g.grad(), b.grad()};
      };
      const Tensors exact = run(Dtype::f64, Dtype::f64), single = run(Dtype::f32, Dtype::f32),
                    half = run(Dtype::bf16, Dtype::f32);
      for (size_t i = 0; i < exact.size(); ++i) {
        EXPECT_LT(relative_error(single[i], exact[i]), 1e-5)
            << "width " << width << " groups " << groups << " tensor " << i;
        EXPECT_LT(relative_error(half[i], exact[i]), 1e-2)
            << "width " << width << " groups " << groups << " tensor " << i;
      }
    }
  }
}

TEST(ChannelNorm, OneGroupIsLayerNormOfTheSample) {
  const Tensor x = random_tensor({3, 4, 5}, "x");
  const Variable one(Tensor::full({4}, 1.0, Dtype::f64)), zero(Tensor::zeros({4}, Dtype::f64));
  const Tensor got = group_norm(Variable(x), one, zero, 1).value();
  const Tensor expected =
      norm(Variable(x.reshape({3, 20})), Variable(Tensor::full({20}, 1.0, Dtype::f64)), Variable(),
           {NormKind::layer, 1e-5, Dtype::f64})
          .value();
  EXPECT_LT(relative_error(got, expected), 1e-13);
}

TEST(BatchNorm2d, RunningStatisticsFollowTheBatchesAndServeInEvaluation) {
  BatchNorm2d layer(2, 0.0, 0.25);
  layer.initialise(1);
  // channel 0: -1 and 3 (mean 1, unbiased variance 8); channel 1: 5 and 5
  const Variable x(Tensor::from(std::vector<float>{-1, 5, 3, 5}, {2, 2, 1, 1}), true);
  EXPECT_EQ(error_of([&] { layer.forward(x); }), "no error");
  EXPECT_EQ(layer.running_mean.to_vector<float>(), (std::vector<float>{0.25f, 1.25f}));
  EXPECT_EQ(layer.running_variance.to_vector<float>(), (std::vector<float>{0.75f + 2.0f, 0.75f}));
  {
    const NoGrad no_grad;  // not a training step
    layer.forward(x);
  }
  EXPECT_EQ(layer.running_mean.to_vector<float>(), (std::vector<float>{0.25f, 1.25f}));
  layer.train(false);
  const auto y = layer.forward(x).value().to_vector<float>();
  EXPECT_NEAR(y[0], (-1.0 - 0.25) / std::sqrt(2.75), 1e-6);
  EXPECT_NEAR(y[3], (5.0 - 1.25) / std::sqrt(0.75), 1e-6);
}

TEST(BatchNorm2d, ARecomputedBlockCountsItsBatchOnce) {
  const auto run = [](bool again) {
    BatchNorm2d layer(3);
    layer.initialise(1);
    const Variable x = leaf({4, 3, 2, 2}, "x", Dtype::f32);
    const auto f = [&](const Variables& in) { return Variables{layer.forward(in[0])}; };
    const Variable y = again ? recompute(f, {x})[0] : f({x})[0];
    sum_all(mul(y, Variable(random_tensor({4, 3, 2, 2}, "u", Dtype::f32)))).backward();
    return std::make_pair(layer.running_variance.to_vector<float>(), x.grad().to_vector<float>());
  };
  EXPECT_EQ(run(false), run(true));
}

TEST(ChannelNorm, TheNumberOfThreadsDoesNotChangeTheBits) {
  const auto run = [](int threads) {
    const int before = num_threads();
    set_num_threads(threads);
    const Variable x = leaf({8, 6, 50, 50}, "x", Dtype::f32), g = leaf({6}, "g", Dtype::f32),
                   b = leaf({6}, "b", Dtype::f32);
    batch_norm(x, g, b).backward(random_tensor({8, 6, 50, 50}, "u", Dtype::f32));
    set_num_threads(before);
    return std::make_pair(x.grad().to_vector<float>(), g.grad().to_vector<float>());
  };
  EXPECT_EQ(run(1), run(2));
}

TEST(ChannelNorm, SizesThatDoNotFitAreNamed) {
  EXPECT_EQ(error_of([] { GroupNorm(3, 8); }), "group_norm: 3 groups do not divide 8 channels");
  GroupNorm groups(2, 4);
  EXPECT_NE(error_of([&] {
              groups.forward(leaf({2, 6, 3}, "x", Dtype::f32));
            }).find("expected weight and bias [6] of f32, found [4]"),
            std::string::npos);
  BatchNorm2d batch(2);
  EXPECT_EQ(error_of([&] {
              batch.forward(leaf({2, 2}, "x", Dtype::f32));
            }),
            "batch_norm2d: expected x [B, C, H, W], found [2, 2]");
  EXPECT_NE(error_of([&] {
              batch.forward(leaf({1, 2, 1, 1}, "x", Dtype::f32));
            }).find("more than one value"),
            std::string::npos);
}

}  // namespace
}  // namespace fovea::nn
