// SPDX-License-Identifier: Apache-2.0
// What the fused layers owe: gradients against central differences in f64, f32 and bf16 against
// f64, both instruction sets, odd sizes, thread independence, errors.
#include "nn/cpu/kernels.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "core/parallel.h"
#include "nn/activation.h"
#include "nn/dropout.h"
#include "nn/embedding.h"
#include "nn/linear.h"
#include "nn/loss.h"
#include "nn/norm.h"
#include "nn/test_util.h"

namespace fovea::nn {
namespace {

const std::vector<int64_t> kSizes = {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 127, 1000};

TEST(Norm, Gradients) {
  for (NormKind kind : {NormKind::layer, NormKind::rms}) {
    const NormOptions options{kind, 1e-5, Dtype::f64};
    gradcheck([&](const Variables& in) { return norm(in[0], in[1], in[2], options); },
              {leaf({2, 3, 5}, "x"), leaf({5}, "g"), leaf({5}, "b")});
    gradcheck([&](const Variables& in) { return norm(in[0], in[1], Variable(), options); },
              {leaf({4, 7}, "x"), leaf({7}, "g")});
    gradcheck([&](const Variables& in) { return add_norm(in[0], in[1], in[2], in[3], options); },
              {leaf({3, 5}, "x"), leaf({3, 5}, "d"), leaf({5}, "g"), leaf({5}, "b")});
  }
}

TEST(Norm, LowerPrecisionFollowsF64InEverySize) {
  for (NormKind kind : {NormKind::layer, NormKind::rms}) {
    for (int64_t c : kSizes) {
      for (Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        if (c == 1 && kind == NormKind::layer)
          continue;  // the result is exactly beta and has no direction to compare
        const Shape shape{67, c};
        // values that bf16 holds exactly, so that only the arithmetic differs
        const Tensor x = random_tensor(shape, "x", Dtype::bf16).to(Dtype::f64),
                     d = random_tensor(shape, "d", Dtype::bf16).to(Dtype::f64);
        const auto run = [&](Dtype delta, Dtype out, Dtype wide) {
          Variables in{Variable(x.to(wide), true), Variable(d.to(delta), true),
                       Variable(random_tensor({c}, "g", wide), true),
                       Variable(random_tensor({c}, "b", wide), true)};
          const Variables results = add_norm(in[0], in[1], in[2], in[3], {kind, 1e-5, out});
          backward(results, {random_tensor(shape, "u", wide), random_tensor(shape, "v", out)});
          return std::vector<Tensor>{results[0].value(), results[1].value(), in[0].grad(),
                                     in[2].grad(), in[3].grad()};
        };
        const auto exact = run(Dtype::f64, Dtype::f64, Dtype::f64),
                   got = run(dtype, dtype, Dtype::f32);
        for (size_t i = 0; i < exact.size(); ++i) {
          if (kind == NormKind::rms && i == 4) continue;
          EXPECT_LT(relative_error(got[i], exact[i]), dtype == Dtype::f32 ? 2e-5 : 1e-2)
              << "C " << c << " tensor " << i << ' ' << dtype;
        }
      }
    }
  }
}

TEST(Norm, BothInstructionSetsAgree) {
  if (cpu_isa() == Isa::avx2) GTEST_SKIP() << "this processor has no AVX-512";
  for (int64_t c : kSizes) {
    if (c == 1) continue;  // exactly zero
    const Tensor x = random_tensor({3, c}, "x", Dtype::f32),
                 g = random_tensor({c}, "g", Dtype::f32), stats = Tensor::empty({4, 3});
    const Tensor a = Tensor::empty({3, c}), b = Tensor::empty({3, c});
    NormForward call{x.raw(),
                     Dtype::f32,
                     nullptr,
                     Dtype::f32,
                     nullptr,
                     a.raw(),
                     Dtype::f32,
                     g.data<float>(),
                     nullptr,
                     stats.data<float>(),
                     stats.data<float>() + 3,
                     c,
                     1e-5f,
                     false,
                     false};
    avx2::norm_forward(call, 0, 3);
    call.y = b.raw();
    avx512::norm_forward(call, 0, 3);
    EXPECT_LT(relative_error(a, b), 1e-6) << c;
  }
}

TEST(Norm, WritingPastTheCachesChangesNothing) {
  for (int64_t c : {int64_t{32}, int64_t{37}, int64_t{1024}}) {
    const Tensor x = random_tensor({3, c}, "x", Dtype::f32),
                 dy = random_tensor({3, c}, "dy", Dtype::f32),
                 g = random_tensor({c}, "g", Dtype::f32);
    const auto run = [&](bool stream) {
      const Tensor y = Tensor::empty({3, c}), ds = Tensor::empty({3, c}),
                   sums = Tensor::zeros({2, c}), stats = Tensor::empty({2, 3}),
                   dl = Tensor::empty({3, c});
      const NormForward forward{x.raw(),
                                Dtype::f32,
                                nullptr,
                                Dtype::f32,
                                nullptr,
                                y.raw(),
                                Dtype::f32,
                                g.data<float>(),
                                nullptr,
                                stats.data<float>(),
                                stats.data<float>() + 3,
                                c,
                                1e-5f,
                                false,
                                stream};
      FOVEA_SIMD_CALL(norm_forward, forward, 0, 3);
      const NormBackward backward{dy.raw(),
                                  Dtype::f32,
                                  x.raw(),
                                  Dtype::f32,
                                  nullptr,
                                  ds.raw(),
                                  g.data<float>(),
                                  stats.data<float>(),
                                  stats.data<float>() + 3,
                                  c,
                                  false,
                                  stream};
      FOVEA_SIMD_CALL(norm_backward, backward, 0, 3, sums.data<float>(), sums.data<float>() + c);
      for (int64_t r = 0; r < 3; ++r) {
        FOVEA_SIMD_CALL(row_softmax_gradient, dl.data<float>() + r * c, x.data<float>() + r * c,
                        Dtype::f32, c, 1.5f, 0.5f, -0.1f, stream);
      }
      std::vector<float> all;
      for (const Tensor& t : {y, ds, sums, dl}) {
        for (float value : t.to_vector<float>()) all.push_back(value);
      }
      return all;
    };
    EXPECT_EQ(run(false), run(true)) << c;
  }
}

TEST(Norm, TheNumberOfThreadsDoesNotChangeTheBits) {
  const auto run = [](int threads) {
    const int before = num_threads();
    set_num_threads(threads);
    const Variable x = leaf({1000, 33}, "x", Dtype::f32), g = leaf({33}, "g", Dtype::f32),
                   b = leaf({33}, "b", Dtype::f32);
    sum_all(mul(norm(x, g, b, {}), Variable(random_tensor({1000, 33}, "c", Dtype::f32))))
        .backward();
    set_num_threads(before);
    return std::make_pair(x.grad().to_vector<float>(), g.grad().to_vector<float>());
  };
  EXPECT_EQ(run(1), run(3));
}

TEST(Norm, ANanStaysInItsRow) {
  const Tensor x = random_tensor({3, 20}, "x", Dtype::f32);
  x.data<float>()[25] = std::nanf("");
  const auto y = norm(Variable(x), Variable(Tensor::full({20}, 1.0)), Variable(), {})
                     .value()
                     .to_vector<float>();
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_FALSE(std::isnan(y[i]));
    EXPECT_TRUE(std::isnan(y[20 + i]));
    EXPECT_FALSE(std::isnan(y[40 + i]));
  }
}

TEST(Norm, ShapesThatDoNotFitAreNamed) {
  EXPECT_THROW(norm(leaf({2, 5}, "x", Dtype::f32), leaf({4}, "g", Dtype::f32), Variable(), {}),
               Error);
  EXPECT_THROW(add_norm(leaf({2, 5}, "x", Dtype::f32), leaf({2, 4}, "d", Dtype::f32),
                        leaf({5}, "g", Dtype::f32), Variable(), {}),
               Error);
}

TEST(Activation, GradientsAndLowerPrecision) {
  for (Activation kind :
       {Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::silu}) {
    gradcheck([&](const Variables& in) { return activate(in[0], kind); }, {leaf({3, 7}, "x")});
    for (int64_t n : kSizes) {
      for (Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        const Tensor x = random_tensor({n}, "x", dtype);
        const auto run = [&](Dtype d) {
          const Variable in(scale(Variable(x.to(d)), 2.0).value(), true);
          const Variable y = activate(in, kind);
          y.backward(Tensor::full({n}, 1.0, d));
          return std::make_pair(y.value(), in.grad());
        };
        const auto exact = run(Dtype::f64), got = run(dtype);
        const double bound = dtype == Dtype::f32 ? 2e-6 : 1e-2;
        EXPECT_LT(relative_error(got.first, exact.first), bound)
            << static_cast<int>(kind) << " n " << n;
        EXPECT_LT(relative_error(got.second, exact.second), bound)
            << static_cast<int>(kind) << " n " << n;
      }
    }
  }
}

TEST(Activation, SwigluGradientsAndLowerPrecision) {
  gradcheck([](const Variables& in) { return swiglu(in[0]); }, {leaf({3, 10}, "x")});
  for (int64_t f : kSizes) {
    const Tensor x = random_tensor({3, 2 * f}, "x", Dtype::f32);
    const auto run = [&](Dtype d) {
      const Variable in(x.to(d), true);
      const Variable y = swiglu(in);
      y.backward(Tensor::full({3, f}, 1.0, d));
      return std::make_pair(y.value(), in.grad());
    };
    const auto exact = run(Dtype::f64), got = run(Dtype::f32);
    EXPECT_LT(relative_error(got.first, exact.first), 2e-6) << f;
    EXPECT_LT(relative_error(got.second, exact.second), 2e-6) << f;
  }
  EXPECT_THROW(swiglu(leaf({3}, "x")), Error);
}

TEST(CrossEntropy, Gradients) {
  const Tensor targets = Tensor::from(std::vector<int64_t>{3, 0, -100, 4}, {4});
  for (double smoothing : {0.0, 0.2}) {
    for (double z_loss : {0.0, 0.1}) {
      gradcheck(
          [&](const Variables& in) {
            return cross_entropy(in[0], targets, {smoothing, -100, z_loss});
          },
          {leaf({4, 5}, "l")});
    }
  }
  const Tensor soft =
      Tensor::from(std::vector<float>{0.5f, 0.5f, 0.0f, 0.0f, 0.25f, 0.75f}, {2, 3});
  gradcheck([&](const Variables& in) { return cross_entropy_soft(in[0], soft, {0.1}); },
            {leaf({2, 3}, "l")});
}

TEST(CrossEntropy, LowerPrecisionFollowsTheDefinition) {
  for (int64_t v : kSizes) {
    for (Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensor l = random_tensor({9, v}, "l", dtype);
      const Tensor targets = Tensor::empty({9}, Dtype::i64);
      for (int64_t r = 0; r < 9; ++r) targets.data<int64_t>()[r] = (r * 7) % v;
      const auto run = [&](Dtype d) {
        const Variable in(l.to(d), true);
        const Variable loss = cross_entropy(in, targets, {0.1});
        loss.backward();
        return std::make_pair(loss.value().item(), in.grad());
      };
      const auto exact = run(Dtype::f64), got = run(dtype);
      EXPECT_NEAR(got.first, exact.first, 2e-6 * std::max(1.0, std::abs(exact.first))) << v;
      if (v == 1) continue;  // the gradient is exactly zero
      EXPECT_LT(relative_error(got.second, exact.second), dtype == Dtype::f32 ? 1e-5 : 1e-2) << v;
    }
  }
}

TEST(CrossEntropy, TheReferenceOfTheSumMayBeFarFromTheLargestLogit) {
  const auto lse = [](const std::vector<float>& l) {
    float total = 0.0f;
    const float plain = FOVEA_SIMD_CALL(row_log_sum_exp, l.data(), Dtype::f32,
                                        static_cast<int64_t>(l.size()), nullptr);
    const float with_total = FOVEA_SIMD_CALL(row_log_sum_exp, l.data(), Dtype::f32,
                                             static_cast<int64_t>(l.size()), &total);
    EXPECT_TRUE(plain == with_total || (std::isnan(plain) && std::isnan(with_total)));
    return plain;
  };
  std::vector<float> row(3001, -5.0f);
  row[2999] = 60.0f;  // within the range of the first reference
  EXPECT_NEAR(lse(row), 60.0, 1e-4);
  row[2999] = 3e4f;  // far beyond it
  EXPECT_FLOAT_EQ(lse(row), 3e4f);
  std::fill(row.begin(), row.end(), -INFINITY);
  EXPECT_EQ(lse(row), -INFINITY);
  row[2000] = 7.0f;  // nothing finite among the first
  EXPECT_FLOAT_EQ(lse(row), 7.0f);
  row[5] = -3e4f;
  EXPECT_FLOAT_EQ(lse(row), 7.0f);
  row[2500] = std::nanf("");
  EXPECT_TRUE(std::isnan(lse(row)));
}

TEST(CrossEntropy, LargeLogitsDoNotOverflowAndBadLabelsAreNamed) {
  const Variable l(Tensor::from(std::vector<float>{1e4f, -1e4f, 0.0f}, {1, 3}), true);
  const Variable loss = cross_entropy(l, Tensor::from(std::vector<int64_t>{1}, {1}));
  EXPECT_FLOAT_EQ(static_cast<float>(loss.value().item()), 2e4f);
  try {
    cross_entropy(l, Tensor::from(std::vector<int64_t>{3}, {1}));
    FAIL() << "accepted label 3 of 3 classes";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "cross_entropy: row 0 has label 3, outside the 3 classes");
  }
}

TEST(KlDivergence, IsZeroAtTheTargetAndHasTheGradientOfTheCrossEntropy) {
  const Tensor t =
      Tensor::from(std::vector<float>{0.5f, 0.25f, 0.25f, 0.0f, 0.125f, 0.875f}, {2, 3});
  const Variable at_target(
      Tensor::from(std::vector<double>{std::log(0.5), std::log(0.25), std::log(0.25), -1e4,
                                       std::log(0.125), std::log(0.875)},
                   {2, 3}),
      true);
  EXPECT_NEAR(kl_divergence(at_target, t).value().item(), 0.0, 1e-12);
  const Variable uniform(Tensor::zeros({2, 3}, Dtype::f64));
  double expected = 0.0;
  for (double p : {0.5, 0.25, 0.25, 0.125, 0.875}) expected += 0.5 * p * std::log(3.0 * p);
  EXPECT_NEAR(kl_divergence(uniform, t).value().item(), expected, 1e-12);
  gradcheck([&](const Variables& in) { return kl_divergence(in[0], t); }, {leaf({2, 3}, "x")});
}

TEST(Bce, GradientsLargeLogitsAndErrors) {
  const Tensor t = Tensor::from(std::vector<float>{0.0f, 1.0f, 0.25f, 0.75f}, {2, 2});
  gradcheck([&](const Variables& in) { return bce_with_logits(in[0], t); }, {leaf({2, 2}, "x")});
  const Variable large(Tensor::from(std::vector<float>{-500.0f, 500.0f, 500.0f, 0.0f}, {2, 2}),
                       true);
  const Variable loss = bce_with_logits(large, t);
  EXPECT_NEAR(loss.value().item(), (0.0 + 0.0 + 0.75 * 500.0 + std::log(2.0)) / 4.0, 1e-4);
  loss.backward();
  EXPECT_EQ(large.grad().to_vector<float>(), (std::vector<float>{0.0f, 0.0f, 0.1875f, -0.0625f}));
  EXPECT_NE(error_of([&] { bce_with_logits(leaf({3}, "x"), t); }).find("[3]"), std::string::npos);
  EXPECT_NE(error_of([&] {
              bce_with_logits(leaf({1}, "x"), Tensor::full({1}, 1.5));
            }).find("target 0 is 1.5"),
            std::string::npos);
}

TEST(Embedding, GradientsAndErrors) {
  const Tensor ids = Tensor::from(std::vector<int64_t>{2, 0, 2, 1, 2, 0}, {2, 3});
  gradcheck([&](const Variables& in) { return embedding(in[0], ids); }, {leaf({4, 3}, "w")});
  try {
    embedding(leaf({2, 3}, "w"), ids);
    FAIL() << "accepted id 2 in a table of 2";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "embedding: id 2 at position 0 is outside the table of 2 rows");
  }
}

TEST(Dropout, KeepsTheMeanAndDoesNotDependOnHowTheBatchIsCut) {
  Linear owner(1, 1);
  owner.initialise(1);
  const Tensor ones = Tensor::full({64, 1000}, 1.0);
  Tensor whole;
  {
    const RandomScope random(5, 2);
    whole = dropout(Variable(ones), 0.25, owner).value();
  }
  double kept = 0.0;
  for (float v : whole.to_vector<float>()) {
    EXPECT_TRUE(v == 0.0f || v == 1.0f / 0.75f);
    kept += v > 0.0f;
  }
  EXPECT_NEAR(kept / 64000.0, 0.75, 5.0 * std::sqrt(0.25 * 0.75 / 64000.0));
  for (bool per_sample : {false, true}) {
    const auto draw = [&](const Tensor& x, int64_t first) {
      const RandomScope random(5, 2, first);
      return (per_sample ? drop_path(Variable(x), 0.25, owner) : dropout(Variable(x), 0.25, owner))
          .value()
          .to_vector<float>();
    };
    auto first = draw(ones.slice(0, 0, 24), 0);
    const auto second = draw(ones.slice(0, 24, 64), 24);
    first.insert(first.end(), second.begin(), second.end());
    EXPECT_EQ(first, draw(ones, 0));
  }
  owner.train(false);
  EXPECT_EQ(dropout(Variable(ones), 0.25, owner).value().to_vector<float>(),
            ones.to_vector<float>());
}

TEST(Dropout,
     EveryDtypeDropsTheSameElements) {  // f64 is the definition, one random word an element
  Linear owner(1, 1);
  owner.initialise(1);
  for (const int64_t first : {0, 1, 6}) {
    for (const int64_t width : {1, 7, 64, 131}) {
      const auto draw = [&](Dtype dtype) {
        const RandomScope random(5, 2, first);
        return dropout(Variable(Tensor::full({3, width}, 1.0, dtype)), 0.4, owner)
            .value()
            .to_vector<double>();
      };
      const auto kept = [](std::vector<double> x) {
        for (double& v : x) v = v != 0.0;
        return x;
      };
      EXPECT_EQ(kept(draw(Dtype::f32)), kept(draw(Dtype::f64))) << width;
      EXPECT_EQ(kept(draw(Dtype::bf16)), kept(draw(Dtype::f64))) << width;
    }
  }
}

// Tokens 2, 3 and 7 of 9, then 0, 4 and 8.
const SequencePart kSomeTokens(9, {{2, 1, 2}, {7, 1, 1}, {0, 4, 3}});

TEST(Dropout, APartOfASequenceIsDroppedAsInTheWhole) {
  Linear owner(1, 1);
  owner.initialise(1);
  for (const int64_t channels : {1, 7, 16}) {
    const RandomScope random(5, 2, 3);
    const auto whole = dropout(Variable(Tensor::full({2, 9, channels}, 1.0)), 0.4, owner)
                           .value()
                           .to_vector<float>();
    std::vector<float> expected;
    for (size_t b = 0; b < 2; ++b)
      for (const int64_t token : {2, 3, 7, 0, 4, 8})
        for (int64_t c = 0; c < channels; ++c)
          expected.push_back(whole[b * static_cast<size_t>(9 * channels) +
                                   static_cast<size_t>(token * channels + c)]);
    for (const Dtype dtype : {Dtype::f32, Dtype::f64}) {
      const Variable x(Tensor::full({2, 6, channels}, 1.0, dtype), true);
      const Variable y = dropout(x, 0.4, owner, &kSomeTokens);
      EXPECT_EQ(y.value().to(Dtype::f32).to_vector<float>(), expected) << channels;
      y.backward(Tensor::full(y.shape(), 1.0, dtype));
      EXPECT_EQ(x.grad().to(Dtype::f32).to_vector<float>(), expected) << channels;
    }
    EXPECT_THROW(dropout(Variable(Tensor::full({2, 9, channels}, 1.0)), 0.4, owner, &kSomeTokens),
                 Error);
  }
}

TEST(Dropout, Gradients) {
  Linear owner(1, 1);
  gradcheck(
      [&](const Variables& in) {
        const RandomScope random(5, 2);
        return drop_path(dropout(in[0], 0.5, owner), 0.5, owner);
      },
      {leaf({4, 5}, "x")});
}

}  // namespace
}  // namespace fovea::nn
