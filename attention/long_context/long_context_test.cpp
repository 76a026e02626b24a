// SPDX-License-Identifier: Apache-2.0
#include "attention/long_context/long_context.h"

#include "autograd/gradcheck.h"
#include "core/testing/devices.h"
#include "core/testing/error_of.h"

namespace fovea::attention {
namespace {

Tensor random_x(const Shape& shape) {
  const Tensor x = Tensor::empty(shape, Dtype::f64);
  fill_normal(x, RngKey(5, "test", "x"));
  return x;
}
std::unique_ptr<LongContext> build(const std::string& mask) {
  LongContextOptions options;
  options.heads = 4;
  options.kv_heads = 2;
  options.rope = "half";
  options.mask.kind = mask;
  if (mask.ends_with("sliding_window")) options.mask.window = {3, 1};
  options.mask.global_tokens = 2;
  options.mask.prefix = 2;
  options.mask.block = 2;
  auto module = std::make_unique<LongContext>(options, 16, 2);
  module->to(Dtype::f64);
  module->initialise(1);
  for (const nn::NamedParameter& p : module->parameters())
    fill_normal(p.variable.value(), RngKey(2, "test", p.name), 0.0, 0.5);
  return module;
}
// What a token of the first sequence reaches: whether output i moves with input j.
std::vector<std::vector<bool>> reach(LongContext& module, const nn::MixerContext& context,
                                     int64_t N) {
  const NoGrad no_grad;
  const Tensor x = random_x({2, N, 16});
  const auto out = [&](const Tensor& in) {
    return module.forward(Variable(in), context).value().select(0, 0).to_vector<double>();
  };
  const auto before = out(x);
  std::vector<std::vector<bool>> moved(static_cast<size_t>(N));
  for (int64_t j = 0; j < N; ++j) {
    const Tensor other = x.clone();
    other.select(0, 0).select(0, j).fill_(0.7);
    const auto after = out(other);
    for (int64_t i = 0; i < N; ++i) {
      bool any = false;
      for (int64_t c = 0; c < 16; ++c) {
        const auto at = static_cast<size_t>(i * 16 + c);
        any = any || before[at] != after[at];
      }
      moved[static_cast<size_t>(i)].push_back(any);
    }
  }
  return moved;
}

TEST(LongContextModule, TokensReachWhatTheMaskSays) {
  const int64_t N = 9;
  const std::vector<int32_t> one{0, 0, 0, 1, 1, 1, 1, 2, 2};
  std::vector<int32_t> both = one;
  both.insert(both.end(), one.begin(), one.end());
  const Tensor documents = Tensor::from(both, {2, N});
  const auto same = [&](int64_t i, int64_t j) {
    return one[static_cast<size_t>(i)] == one[static_cast<size_t>(j)];
  };
  const auto start = [](int64_t t) -> int64_t { return t < 3 ? 0 : t < 7 ? 3 : 7; };
  const std::map<std::string, std::function<bool(int64_t, int64_t)>> seen{
      {"full", same},
      {"causal", [&](int64_t i, int64_t j) { return same(i, j) && j <= i; }},
      {"sliding_window",
       [&](int64_t i, int64_t j) { return same(i, j) && i - j <= 3 && j - i <= 1; }},
      {"global_sliding_window",
       [&](int64_t i, int64_t j) {
         return same(i, j) && ((i - j <= 3 && j - i <= 1) || i < 2 || j < 2);
       }},
      {"prefix_lm_causal", [&](int64_t i, int64_t j) { return same(i, j) && (j <= i || j < 2); }},
      {"full_document", same},
      {"causal_document", [&](int64_t i, int64_t j) { return same(i, j) && j <= i; }},
      {"prefix_lm_document",
       [&](int64_t i, int64_t j) { return same(i, j) && (j <= i || j - start(j) < 2); }},
      {"share_question", [&](int64_t i, int64_t j) { return (same(i, j) || j < 3) && j <= i; }},
      {"causal_blockwise", [&](int64_t i, int64_t j) { return (same(i, j) || i >= 7) && j <= i; }},
      {"block_causal_document", [&](int64_t i, int64_t j) {
         return same(i, j) && (j - start(j)) / 2 <= (i - start(i)) / 2;
       }}};
  for (const char* kind : kMaskKinds) {
    const auto module = build(kind);
    for (const bool causal : {false, true}) {
      nn::MixerContext context;
      context.causal = causal;
      context.documents = documents;
      if (causal && std::string(kind).starts_with("prefix_lm")) {
        EXPECT_EQ(error_of([&] { reach(*module, context, N); }),
                  concat("long_context: mask ", kind,
                         " lets tokens see later ones, in a model that predicts them"));
        continue;
      }
      const auto found = reach(*module, context, N);
      for (int64_t i = 0; i < N; ++i) {
        for (int64_t j = 0; j < N; ++j)  // a token moves its own output through its query
          EXPECT_EQ(found[static_cast<size_t>(i)][static_cast<size_t>(j)],
                    i == j || (seen.at(kind)(i, j) && (!causal || j <= i)))
              << kind << ' ' << i << ' ' << j << ' ' << causal;
      }
    }
  }
}

TEST(LongContextModule, GradientsAreThoseOfDifferences) {
  for (const char* kind : {"global_sliding_window", "share_question"}) {
    const auto module = build(kind);
    const Variable x(random_x({1, 7, 16}), true);
    gradcheck([&](const Variables& in) { return module->forward(in[0], {}); }, {x});
  }
}

}  // namespace
}  // namespace fovea::attention
