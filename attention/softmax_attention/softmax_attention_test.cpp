// SPDX-License-Identifier: Apache-2.0
#include "attention/softmax_attention/softmax_attention.h"

#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "core/rng.h"

namespace fovea::attention {
namespace {

constexpr int64_t kChannels = 12;

Tensor random_x(const Shape& shape, const char* name = "x") {
  const Tensor x = Tensor::empty(shape, Dtype::f64);
  fill_normal(x, RngKey(5, "test", name));
  return x;
}

std::unique_ptr<SoftmaxAttention> build(const SoftmaxAttentionOptions& options) {
  auto module = std::make_unique<SoftmaxAttention>(options, kChannels, 0, 2);
  module->to(Dtype::f64);
  module->initialise(1);
  // Larger weights than training starts with, so that scores matter.
  for (const nn::NamedParameter& p : module->parameters()) {
    if (p.name.ends_with("bias") || p.name == "sink") fill_normal(p.variable.value(), RngKey(2, "test", p.name), 0.0, 0.5);
    else if (!p.name.ends_with("norm.weight")) fill_normal(p.variable.value(), RngKey(2, "test", p.name), 0.0, 0.5);
  }
  return module;
}

std::map<std::string, SoftmaxAttentionOptions> variants() {
  std::map<std::string, SoftmaxAttentionOptions> all;
  SoftmaxAttentionOptions base;
  base.heads = 3;
  all["plain"] = base;
  all["grouped"] = base;
  all["grouped"].heads = 6;
  all["grouped"].kv_heads = 2;
  all["window"] = base;
  all["window"].window = 3;
  all["rope"] = base;
  all["rope"].rope = "half";
  all["alibi"] = base;
  all["alibi"].alibi = true;
  all["capped"] = base;
  all["capped"].softcap = 2.0;
  all["sink"] = base;
  all["sink"].sink = true;
  all["rms"] = base;
  all["rms"].qk_norm = "rms";
  all["l2"] = base;
  all["l2"].qk_norm = "l2";
  all["wide, no bias"] = base;
  all["wide, no bias"].head_dim = 7;
  all["wide, no bias"].bias = false;
  return all;
}

TEST(SoftmaxAttention, EveryVariantHasTheGradientOfItsForward) {
  for (const auto& [name, options] : variants()) {
    SCOPED_TRACE(name);
    const auto module = build(options);
    Variables inputs{Variable(random_x({2, 5, kChannels}), true)};
    for (const nn::NamedParameter& p : module->parameters()) inputs.push_back(p.variable);
    nn::MixerContext context;
    context.causal = true;
    gradcheck([&](const Variables& in) { return module->forward(in[0], context); }, inputs);
  }
}

TEST(SoftmaxAttention, DecodingTokenByTokenOrInPiecesGivesTheForward) {
  for (const auto& [name, options] : variants()) {
    SCOPED_TRACE(name);
    const auto module = build(options);
    module->train(false);
    const int64_t tokens = 23;
    const Tensor x = random_x({2, tokens, kChannels});
    nn::MixerContext context;
    context.causal = true;
    const std::vector<double> whole = module->forward(Variable(x), context).value().to_vector<double>();
    for (const std::vector<int64_t>& pieces : {std::vector<int64_t>(23, 1), std::vector<int64_t>{11, 1, 1, 1, 9}}) {
      const auto state = module->make_state(2, tokens);
      Variables parts;
      int64_t at = 0;
      for (const int64_t n : pieces) {
        parts.emplace_back(module->decode(x.slice(1, at, at + n).contiguous(), *state));
        at += n;
      }
      const std::vector<double> decoded = concat(parts, 1).value().to_vector<double>();
      for (size_t i = 0; i < whole.size(); ++i) ASSERT_NEAR(decoded[i], whole[i], 1e-12) << i;
      if (options.window > 0) {
        EXPECT_LE(state->bytes(), 2 * 2 * 3 * 4 * 8 * (2 * options.window + 11));
      }
    }
  }
}

TEST(SoftmaxAttention, DocumentsDoNotSeeEachOther) {
  SoftmaxAttentionOptions options;
  options.heads = 3;
  const auto module = build(options);
  const Tensor x = random_x({1, 9, kChannels});
  nn::MixerContext context;
  context.causal = true;
  const Tensor second = module->forward(Variable(x.slice(1, 4, 9).contiguous()), context).value();
  context.documents = Tensor::from(std::vector<int32_t>{0, 0, 0, 0, 1, 1, 1, 1, 1}, {1, 9});
  const std::vector<double> packed = module->forward(Variable(x), context).value().slice(1, 4, 9).to_vector<double>(), alone = second.to_vector<double>();
  for (size_t i = 0; i < alone.size(); ++i) ASSERT_NEAR(packed[i], alone[i], 1e-12);
}

TEST(SoftmaxAttention, SizesThatDoNotDivideAreNamed) {
  SoftmaxAttentionOptions options;
  options.heads = 5;
  const auto message = [&] {
    try {
      SoftmaxAttention(options, kChannels, 0, 1);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_NE(message().find("5 heads do not divide 12 channels"), std::string::npos) << message();
  options.heads = 6;
  options.kv_heads = 4;
  EXPECT_NE(message().find("4 key heads do not divide 6 heads"), std::string::npos) << message();
  options.kv_heads = 6;
  options.head_dim = 3;
  options.rope = "half";
  EXPECT_NE(message().find("even head_dim, found 3"), std::string::npos) << message();
}

}  // namespace
}  // namespace fovea::attention
