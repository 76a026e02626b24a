// SPDX-License-Identifier: Apache-2.0
#include "train/sampler.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

namespace fovea::train {
namespace {

Tensor logits(const std::vector<float>& values) {
  return Tensor::from(values, {static_cast<int64_t>(values.size())});
}

std::array<int, 4> histogram(const SamplerOptions& options, int draws) {
  const Tensor l = logits({std::log(0.1f), std::log(0.2f), std::log(0.3f), std::log(0.4f)});
  std::array<int, 4> counts{};
  for (int i = 0; i < draws; ++i)
    ++counts[static_cast<size_t>(choose_token(l, options, static_cast<uint64_t>(i)))];
  return counts;
}

TEST(Sampler, TemperatureZeroTakesTheLikeliestAndTheFirstOfEqualOnes) {
  SamplerOptions options;
  options.temperature = 0.0;
  EXPECT_EQ(choose_token(logits({0.5f, 3.0f, -1.0f, 3.0f}), options, 0), 1);
}

TEST(Sampler, FrequenciesFollowTheProbabilities) {
  const auto counts = histogram({}, 20000);
  for (size_t i = 0; i < 4; ++i) {
    const double p = 0.1 * static_cast<double>(i + 1);
    EXPECT_NEAR(counts[i], 20000 * p, 5.0 * std::sqrt(20000 * p * (1 - p)));
  }
}

TEST(Sampler, TopKAndTopPKeepTheLikeliest) {
  SamplerOptions top_k;
  top_k.top_k = 2;
  const auto k = histogram(top_k, 2000);
  EXPECT_EQ(k[0] + k[1], 0);
  EXPECT_GT(k[2], 0);
  SamplerOptions top_p;
  top_p.top_p = 0.65;  // 0.4 + 0.3 reaches it
  const auto p = histogram(top_p, 2000);
  EXPECT_EQ(p[0] + p[1], 0);
  EXPECT_GT(p[2], 0);
}

TEST(Sampler, TheSameSeedGivesTheSameDraws) {
  SamplerOptions other;
  other.seed = 2;
  EXPECT_EQ(histogram({}, 100), histogram({}, 100));
  EXPECT_NE(histogram({}, 100), histogram(other, 100));
}

TEST(Sampler, AnIdWithoutATokenIsShownAndEndsNothing) {
  const auto tokenizer = data::character_tokenizer("ab");
  EXPECT_EQ(text_of(*tokenizer, 1), "b");
  EXPECT_EQ(text_of(*tokenizer, 2), "\xef\xbf\xbd");  // a model whose vocabulary is padded
}

TEST(Sampler, BadOptionsAndNanAreRefused) {
  SamplerOptions options;
  options.top_p = 0.0;
  EXPECT_THROW(options.validate(), Error);
  options = {};
  options.temperature = -1.0;
  EXPECT_THROW(options.validate(), Error);
  EXPECT_THROW(choose_token(logits({1.0f, std::nanf("")}), {}, 0), Error);
}

}  // namespace
}  // namespace fovea::train
