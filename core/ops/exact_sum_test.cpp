// SPDX-License-Identifier: Apache-2.0
#include "core/ops/exact_sum.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "core/fixed_point.h"
#include "core/testing/devices.h"

namespace fovea {
namespace {

class ExactSumOn : public OnDevices {
 protected:
  // Values of every magnitude from 2^-70 to 2^15.
  static std::vector<std::vector<float>> addends(int64_t count, int64_t n) {
    std::mt19937 random(7);
    std::uniform_real_distribution<float> digits(-1.0f, 1.0f);
    std::uniform_int_distribution<int> exponent(-70, 15);
    std::vector<std::vector<float>> all(static_cast<size_t>(count));
    for (auto& x : all)
      for (int64_t i = 0; i < n; ++i) x.push_back(std::ldexp(digits(random), exponent(random)));
    return all;
  }
  static Tensor tensor(const std::vector<float>& x) {
    return Tensor::from(x, {static_cast<int64_t>(x.size())}).to(device());
  }
};

TEST_P(ExactSumOn, IsTheSumWhateverTheOrderAndTheParts) {
  constexpr int64_t n = 300;
  auto all = addends(20, n);
  std::vector<float> expected;
  for (size_t i = 0; i < n; ++i) {
    long double sum = 0.0L;  // 64 bits hold 2^-45 to 2^18
    for (const auto& x : all) sum += static_cast<long double>(x[i]);
    expected.push_back(static_cast<float>(sum));
  }
  std::vector<float> first;
  for (int order = 0; order < 3; ++order) {
    std::shuffle(all.begin(), all.end(), std::mt19937(order));
    // Parts of 20, of 1 and 19, of 2 and 18 addends.
    ExactSum a({n}, device()), b({n}, device());
    for (int k = 0; k < 20; ++k) (k < order ? a : b).add(tensor(all[static_cast<size_t>(k)]));
    EXPECT_EQ(a.addends() + b.addends(), 20);
    const Tensor parts = a.parts().to(kCpu), more = b.parts().to(kCpu);
    for (int64_t i = 0; i < 2 * n; ++i) parts.data<int64_t>()[i] += more.data<int64_t>()[i];
    a.parts().copy_(parts);
    const auto found = a.total().to_vector<float>();
    if (order == 0) first = found;
    EXPECT_EQ(found, first) << order;
    for (size_t i = 0; i < n; ++i)
      EXPECT_NEAR(found[i], expected[i], 6e-8f * std::abs(expected[i]) + 0x1p-43f) << i;
    EXPECT_TRUE(a.good() && b.good());
  }
}

// One addend comes back as it is, down to the smallest that keeps all its bits.
TEST_P(ExactSumOn, HoldsWhatItSaysItHolds) {
  const float most = std::nextafter(FixedPoint::kLimit, 0.0f),
              least = 0x1.fffffep-41f;  // its last bit is 2^-64
  const std::vector<float> x{0.0f, 1.0f, -1.0f, most, -most, least, -least, 0x1p-24f, 0x1.8p-25f};
  ExactSum sum({3, 3}, device());
  sum.add(tensor(x).view({3, 3}));
  EXPECT_EQ(sum.total().to_vector<float>(), x);
  sum.add(tensor({-0x1p-24f, 1, 1, most, most, least, least, 0x1p-24f, 0x1.8p-25f}).view({3, 3}));
  EXPECT_EQ(sum.total().to_vector<float>(),
            (std::vector<float>{-0x1p-24f, 2, 0, 2 * most, 0, 2 * least, 0, 0x1p-23f, 0x1.8p-24f}));
  sum.clear();
  EXPECT_EQ(sum.total().to_vector<float>(), std::vector<float>(9, 0.0f));
  EXPECT_EQ(sum.addends(), 0);
}

TEST_P(ExactSumOn, WhatDoesNotFitIsSaid) {
  for (const float bad : {NAN, INFINITY, -INFINITY, FixedPoint::kLimit, -FixedPoint::kLimit}) {
    ExactSum sum({2}, device());
    EXPECT_TRUE(sum.good());
    sum.add(tensor({1.0f, bad}));
    EXPECT_FALSE(sum.good()) << bad;
    EXPECT_EQ(sum.total().to_vector<float>(), (std::vector<float>{1.0f, 0.0f}));
    sum.clear();
    EXPECT_TRUE(sum.good());
  }
  ExactSum sum({2}, device());
  EXPECT_THROW(sum.add(tensor({1.0f})), Error);
  EXPECT_THROW(sum.add(tensor({1.0f, 2.0f}).to(Dtype::bf16)), Error);
}

FOVEA_ON_DEVICES(ExactSumOn);

TEST(Grid, SumsInAnyOrderAreTheSame) {
  std::mt19937 random(3);
  std::uniform_real_distribution<double> loss(0.0, 11.0);
  std::vector<double> all(1000);
  for (double& x : all) x = to_grid(loss(random), 36);
  double forth = 0.0, back = 0.0;
  for (size_t i = 0; i < all.size(); ++i) forth += all[i], back += all[all.size() - 1 - i];
  EXPECT_EQ(forth, back);
  EXPECT_NEAR(to_grid(0.1, 36), 0.1, 0x1p-37);
}

}  // namespace
}  // namespace fovea
