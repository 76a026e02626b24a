// SPDX-License-Identifier: Apache-2.0
#include "attention/softmax_attention/softmax_attention.h"

#include <cmath>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "core/rng.h"
#include "core/testing/devices.h"
#include "nn/gpt.h"
#include "nn/loss.h"

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
    if (p.name.ends_with("bias") || p.name == "sink")
      fill_normal(p.variable.value(), RngKey(2, "test", p.name), 0.0, 0.5);
    else if (!p.name.ends_with("norm.weight"))
      fill_normal(p.variable.value(), RngKey(2, "test", p.name), 0.0, 0.5);
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

// In f64 where a device has it.
class SoftmaxAttentionOn : public OnDevices {
 protected:
  static Dtype dtype() { return has_f64() ? Dtype::f64 : Dtype::f32; }
  static double tolerance() { return has_f64() ? 1e-12 : 2e-5; }
  static std::unique_ptr<SoftmaxAttention> build_here(const SoftmaxAttentionOptions& options) {
    auto module = build(options);
    module->to(dtype());
    module->to(device());
    return module;
  }
  static Tensor x_here(const Shape& shape) { return random_x(shape).to(dtype()).to(device()); }
  static double distance(const std::vector<double>& a, const std::vector<double>& b) {
    double largest = 0.0, scale = 1.0;
    for (size_t i = 0; i < a.size(); ++i) {
      largest = std::max(largest, std::abs(a[i] - b[i]));
      scale = std::max(scale, std::abs(b[i]));
    }
    return largest / scale;
  }
};

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

TEST(SoftmaxAttention, OperatorWithSinkAndBiasHasTheGradientOfItsForward) {
  const auto leaf = [](const Shape& shape, const char* name) {
    const Tensor value = Tensor::empty(shape, Dtype::f64);
    fill_normal(value, RngKey(7, "test", name));
    return Variable(value, true);
  };
  ScoreOptions options;
  options.softcap = 2.0;
  options.rope = Rope::interleaved;
  gradcheck(
      [&](const Variables& in) {
        return softmax_attention(in[0], in[1], in[2], in[3], alibi_slopes(4), Mask().causal(),
                                 options, in[4]);
      },
      {leaf({2, 4, 3, 6}, "q"), leaf({2, 2, 5, 6}, "k"), leaf({2, 2, 5, 4}, "v"), leaf({4}, "sink"),
       leaf({1, 4, 3, 5}, "bias")});
}

TEST_P(SoftmaxAttentionOn, DecodingTokenByTokenOrInPiecesGivesTheForward) {
  for (const auto& [name, options] : variants()) {
    SCOPED_TRACE(name);
    const auto module = build_here(options);
    module->train(false);
    const int64_t tokens = 13;
    const Tensor x = x_here({2, tokens, kChannels});
    nn::MixerContext context;
    context.causal = true;
    const std::vector<double> whole =
        module->forward(Variable(x), context).value().to_vector<double>();
    for (const std::vector<int64_t>& pieces :
         {std::vector<int64_t>(13, 1), std::vector<int64_t>{6, 1, 1, 5}}) {
      const auto state = module->make_state(2, tokens);
      Variables parts;
      int64_t at = 0;
      for (const int64_t n : pieces) {
        parts.emplace_back(module->decode(x.slice(1, at, at + n).contiguous(), *state));
        at += n;
      }
      const std::vector<double> decoded = concat(parts, 1).value().to_vector<double>();
      EXPECT_LT(distance(decoded, whole), tolerance());
      if (options.window > 0) {
        EXPECT_LE(state->bytes(), 2 * 2 * 3 * 4 * size_of(dtype()) * (2 * options.window + 11));
      }
    }
  }
}

TEST_P(SoftmaxAttentionOn, DocumentsDoNotSeeEachOther) {
  SoftmaxAttentionOptions options;
  options.heads = 3;
  const auto module = build_here(options);
  const Tensor x = x_here({1, 9, kChannels});
  nn::MixerContext context;
  context.causal = true;
  const Tensor second = module->forward(Variable(x.slice(1, 4, 9).contiguous()), context).value();
  context.documents =
      Tensor::from(std::vector<int32_t>{0, 0, 0, 0, 1, 1, 1, 1, 1}, {1, 9}, device());
  const std::vector<double>
      packed = module->forward(Variable(x), context).value().slice(1, 4, 9).to_vector<double>(),
      alone = second.to_vector<double>();
  EXPECT_LT(distance(packed, alone), tolerance());
}

TEST_P(SoftmaxAttentionOn, EveryVariantTrainsAsInF64) {
  for (const auto& [name, options] : variants()) {
    SCOPED_TRACE(name);
    const auto here = build_here(options), f64 = build(options);
    nn::MixerContext context, context_here;
    context.causal = context_here.causal = true;
    context.documents =
        Tensor::from(std::vector<int32_t>{0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0}, {2, 7});
    context_here.documents = context.documents.to(device());
    const Variable x(random_x({2, 7, kChannels}), true), x_device(x_here({2, 7, kChannels}), true);
    const auto square_sum = [](const Variable& out) { return sum_all(mul(out, out)); };
    square_sum(f64->forward(x, context)).backward();
    square_sum(here->forward(x_device, context_here)).backward();
    EXPECT_LT(distance(x_device.grad().to_vector<double>(), x.grad().to_vector<double>()),
              tolerance());
    for (size_t i = 0; i < f64->parameters().size(); ++i)
      EXPECT_LT(distance(here->parameters()[i].variable.grad().to_vector<double>(),
                         f64->parameters()[i].variable.grad().to_vector<double>()),
                tolerance())
          << f64->parameters()[i].name;
  }
}

FOVEA_ON_DEVICES(SoftmaxAttentionOn);

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

// The whole model as training runs it (packed, in place, through the products' own kernels) against
// the f64 definitions.
TEST(SoftmaxAttention, GradientsOfAGptFollowF64) {
  nn::GptOptions options;
  options.layers = 2;
  options.dim = 64;
  options.context = 96;
  const auto mixer = [](int64_t channels, int64_t layer, int64_t layers) {
    SoftmaxAttentionOptions o;
    o.heads = 2;
    return std::make_unique<SoftmaxAttention>(o, channels, layer, layers);
  };
  const Tensor ids = Tensor::empty({8, 96}, Dtype::i64),
               targets = Tensor::empty({8, 96}, Dtype::i64);
  for (int64_t i = 0; i < ids.numel(); ++i) {
    ids.data<int64_t>()[i] =
        static_cast<int64_t>(random_below(RngKey(1, "test", "ids"), static_cast<uint64_t>(i), 64));
    targets.data<int64_t>()[i] =
        i % 3 == 0 ? -100
                   : static_cast<int64_t>(
                         random_below(RngKey(1, "test", "targets"), static_cast<uint64_t>(i), 64));
  }
  const auto gradients = [&](Dtype compute) {
    auto gpt = std::make_unique<nn::Gpt>(options, 64, mixer);
    gpt->initialise(3, 4.0);
    if (compute == Dtype::f64) gpt->to(Dtype::f64);
    gpt->set_compute(compute);
    nn::cross_entropy(gpt->forward(ids), targets).backward();
    return gpt;
  };
  const auto expected = gradients(Dtype::f64);
  for (const auto& [compute, tolerance] :
       {std::pair{Dtype::f32, 2e-5}, std::pair{Dtype::bf16, 4e-2}}) {
    const auto found = gradients(compute);
    for (size_t i = 0; i < expected->parameters().size(); ++i) {
      const nn::NamedParameter want = expected->parameters()[i], got = found->parameters()[i];
      const auto a = want.variable.grad().to_vector<double>(),
                 b = got.variable.grad().to_vector<double>();
      double error = 0.0, size = 0.0;
      for (size_t e = 0; e < a.size(); ++e)
        error += (a[e] - b[e]) * (a[e] - b[e]), size += a[e] * a[e];
      EXPECT_LE(std::sqrt(error), tolerance * std::sqrt(size))
          << want.name << " in " << name(compute);
    }
  }
}

}  // namespace
}  // namespace fovea::attention
