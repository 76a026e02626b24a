// SPDX-License-Identifier: Apache-2.0
#include "nn/gpt.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "core/ops/elementwise.h"
#include "nn/loss.h"
#include "nn/vit.h"

namespace fovea::nn {
namespace {

// The simplest mixer: y_i = W mean_{j <= i} x_j (causal) or the mean over all tokens.
class MeanMixer final : public Mixer {
 public:
  explicit MeanMixer(int64_t channels) : linear_(channels, channels) { declare("linear", linear_); }

  Variable forward(const Variable& x, const MixerContext& context) override {
    const int64_t n = x.dim(1);
    const Tensor weights = Tensor::zeros({n, n});
    for (int64_t i = 0; i < n; ++i) {
      const int64_t seen = context.causal ? i + 1 : n;
      for (int64_t j = 0; j < seen; ++j)
        weights.data<float>()[i * n + j] = 1.0f / static_cast<float>(seen);
    }
    // (A x)^T = x^T A^T: fold the batch by working on [B, C, N] x [N, N]
    const Variable mixed = matmul(reshape(transpose(x, 1, 2), {x.dim(0) * x.dim(2), n}),
                                  Variable(weights.transpose(0, 1).contiguous().to(x.dtype())));
    return linear_.forward(transpose(reshape(mixed, {x.dim(0), x.dim(2), n}), 1, 2));
  }

  struct State final : MixerState {
    Tensor sum;
    int64_t tokens = 0;
    int64_t bytes() const override { return sum.defined() ? sum.bytes() : 0; }
  };
  std::unique_ptr<MixerState> make_state(int64_t, int64_t) override {
    return std::make_unique<State>();
  }
  Tensor decode(const Tensor& x, MixerState& state) override {
    auto& s = static_cast<State&>(state);
    const Tensor out = Tensor::empty_like(x);
    for (int64_t i = 0; i < x.dim(1); ++i) {
      const Tensor token = x.select(1, i);
      s.sum = s.sum.defined() ? add(s.sum, token) : token.clone();
      out.select(1, i).copy_(scale(s.sum, 1.0 / static_cast<double>(++s.tokens)));
    }
    return linear_.forward(Variable(out)).value();
  }
  double forward_flops(int64_t batch, int64_t tokens) const override {
    return 2.0 * static_cast<double>(batch * tokens * linear_.weight.value().numel());
  }

 private:
  Linear linear_;
};

const MixerFactory kMean = [](int64_t channels, int64_t, int64_t) {
  return std::make_unique<MeanMixer>(channels);
};

GptOptions tiny() {
  GptOptions options;
  options.layers = 2;
  options.dim = 8;
  options.context = 6;
  return options;
}

Tensor ids(const std::vector<int64_t>& values, const Shape& shape) {
  return Tensor::from(values, shape);
}

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Gpt, NamesAndCountsItsParameters) {
  Gpt gpt(tiny(), 11, kMean);
  gpt.initialise(1);
  std::vector<std::string> names;
  for (const auto& p : gpt.parameters()) names.push_back(p.name);
  EXPECT_EQ(names[0], "token.weight");
  EXPECT_EQ(names[1], "position.weight");
  EXPECT_EQ(names[2], "blocks.0.norm1.weight");
  EXPECT_EQ(names[4], "blocks.0.attention.linear.weight");
  // 11*8 + 6*8 + 2 * (2*16 + 72 + (8*32+32) + (32*8+8)) + 16
  EXPECT_EQ(gpt.parameter_count(), 88 + 48 + 2 * (32 + 72 + 288 + 264) + 16);
}

TEST(Gpt, DoesNotLookAhead) {
  Gpt gpt(tiny(), 11, kMean);
  gpt.initialise(1);
  const Tensor a = gpt.forward(ids({1, 2, 3, 4, 5, 6}, {1, 6})).value();
  const Tensor b = gpt.forward(ids({1, 2, 3, 9, 0, 7}, {1, 6})).value();
  EXPECT_EQ(a.slice(1, 0, 3).to_vector<float>(), b.slice(1, 0, 3).to_vector<float>());
  EXPECT_NE(a.slice(1, 3, 4).to_vector<float>(), b.slice(1, 3, 4).to_vector<float>());
}

TEST(Gpt, DecodingTokenByTokenEqualsTheFullPass) {
  for (const char* positions : {"learned", "sinusoidal", "none"}) {
    GptOptions options = tiny();
    options.positions = positions;
    options.norm = "rms";
    options.mlp = "swiglu";
    options.tied_head = false;
    Gpt gpt(options, 11, kMean);
    gpt.initialise(3);
    const Tensor tokens = ids({4, 1, 10, 0, 2, 7, 3, 3, 5, 9, 8, 1}, {2, 6});
    const Tensor full = gpt.forward(tokens).value();
    GptState state = gpt.make_state(2, 6);
    Tensor step = gpt.decode(tokens.slice(1, 0, 3).contiguous(), state);
    for (int64_t t = 2; t < 6; ++t) {
      if (t > 2) step = gpt.decode(tokens.slice(1, t, t + 1).contiguous(), state);
      const auto want = full.select(1, t).to_vector<float>(), got = step.to_vector<float>();
      for (size_t i = 0; i < want.size(); ++i)
        EXPECT_NEAR(got[i], want[i], 1e-6) << positions << " token " << t;
    }
    EXPECT_NE(message_of([&] {
                gpt.decode(ids({1, 1}, {2, 1}), state);
              }).find("capacity of 6"),
              std::string::npos);
  }
}

TEST(Gpt, GradientsOfTheLossAreRight) {
  GptOptions options = tiny();
  options.dim = 4;
  Gpt gpt(options, 5, kMean);
  gpt.initialise(5);
  gpt.to(Dtype::f64);
  gpt.set_compute(Dtype::f64);
  const Tensor tokens = ids({0, 1, 4, 2, 3, 3, 1, 0}, {2, 4}),
               targets = ids({1, 4, 2, -100, 3, 1, 0, 2}, {2, 4});
  Variables leaves;
  for (const auto& p : gpt.parameters()) {
    fill_normal(p.variable.value(), RngKey(7, "test", p.name), 0.0, 0.5);
    leaves.push_back(p.variable);
  }
  gradcheck([&](const Variables&) { return cross_entropy(gpt.forward(tokens), targets, {}); },
            leaves);
}

TEST(Gpt, RecomputeGivesTheSameBits) {
  const auto gradients = [](bool recompute) {
    GptOptions options = tiny();
    options.recompute = recompute;
    options.dropout = 0.2;
    Gpt gpt(options, 11, kMean);
    gpt.initialise(1);
    const RandomScope random(9, 3);
    const Tensor tokens = ids({1, 2, 3, 4, 5, 6}, {1, 6});
    cross_entropy(gpt.forward(tokens), tokens, {}).backward();
    std::vector<float> all;
    for (const auto& p : gpt.parameters()) {
      const auto g = p.variable.grad().to_vector<float>();
      all.insert(all.end(), g.begin(), g.end());
    }
    return all;
  };
  EXPECT_EQ(gradients(false), gradients(true));
}

TEST(Gpt, BadSizesAreExplained) {
  Gpt gpt(tiny(), 11, kMean);
  gpt.initialise(1);
  EXPECT_NE(message_of([&] {
              gpt.forward(Tensor::zeros({1, 7}, Dtype::i64));
            }).find("7 tokens, but the model was built for a context of 6"),
            std::string::npos);
  EXPECT_NE(message_of([&] { gpt.forward(ids({1, 11}, {1, 2})); }).find("11"), std::string::npos);
}

TEST(Vit, PatchifyIsTheConvolutionWithKernelAndStrideP) {
  std::vector<float> pixels(2 * 4 * 6);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<float>(i);
  const Tensor patches = patchify(Variable(Tensor::from(pixels, {1, 2, 4, 6})), 2).value();
  EXPECT_EQ(patches.shape(), (Shape{1, 6, 8}));
  EXPECT_EQ(patches.select(1, 4).to_vector<float>(),
            (std::vector<float>{14, 15, 20, 21, 38, 39, 44, 45}));
  EXPECT_NE(message_of([&] {
              patchify(Variable(Tensor::zeros({1, 1, 5, 4})), 2);
            }).find("do not divide"),
            std::string::npos);
}

TEST(Vit, GradientsOfTheLossAreRight) {
  for (const char* pool : {"class", "mean"}) {
    VitOptions options;
    options.layers = 1;
    options.dim = 4;
    options.patch = 2;
    options.pool = pool;
    Vit vit(options, 1, 4, 4, 3, kMean);
    vit.initialise(1);
    vit.to(Dtype::f64);
    vit.set_compute(Dtype::f64);
    Variables leaves{Variable(Tensor::empty({2, 1, 4, 4}, Dtype::f64), true)};
    for (const auto& p : vit.parameters()) leaves.push_back(p.variable);
    for (size_t i = 0; i < leaves.size(); ++i)
      fill_normal(leaves[i].value(), RngKey(i, "test", pool), 0.0, 0.5);
    gradcheck(
        [&](const Variables& in) {
          return cross_entropy(vit.forward(in[0]), ids({2, 0}, {2}), {});
        },
        leaves);
  }
}

TEST(Vit, BadSizesAreExplained) {
  VitOptions options;
  options.patch = 5;
  EXPECT_NE(message_of([&] {
              Vit(options, 1, 28, 28, 10, kMean);
            }).find("patches of 5 x 5 pixels do not divide images of 28 x 28"),
            std::string::npos);
}

}  // namespace
}  // namespace fovea::nn
