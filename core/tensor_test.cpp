// SPDX-License-Identifier: Apache-2.0
#include "core/tensor.h"

#include <cmath>
#include <functional>

#include "core/ops/elementwise.h"
#include "core/ops/reduce.h"
#include "core/rng.h"
#include "core/testing/devices.h"

namespace fovea {
namespace {

Tensor iota(const Shape& shape, Device device = kCpu) {
  std::vector<float> values(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  return Tensor::from(values, shape, device);
}

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

class Tensors : public OnDevices {};
FOVEA_ON_DEVICES(Tensors);

TEST_P(Tensors, ViewsShareStorageAndReadTheRightElements) {
  const Tensor t = iota({2, 3, 4}, device());
  const Tensor swapped = t.transpose(0, 2);
  EXPECT_EQ(swapped.shape(), (Shape{4, 3, 2}));
  EXPECT_TRUE(swapped.shares_storage_with(t));
  EXPECT_EQ(swapped.select(0, 1).to_vector<float>(), (std::vector<float>{1, 13, 5, 17, 9, 21}));
  EXPECT_EQ(t.slice(1, 1, 3).to_vector<float>(),
            (std::vector<float>{4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23}));
  EXPECT_EQ(t.permute({2, 0, 1}).slice(0, 3, 4).to_vector<float>(),
            (std::vector<float>{3, 7, 11, 15, 19, 23}));
}

TEST_P(Tensors, ViewOfAStridedTensorCutsRunsThatStayTogether) {
  const Tensor t = iota({2, 6, 4}, device());
  const Tensor heads = t.view({2, 6, 2, 2}).transpose(1, 2);  // [2, 2, 6, 2]
  EXPECT_EQ(heads.view({2, 2, 3, 2, 2}).to_vector<float>(), heads.to_vector<float>());
  EXPECT_NE(message_of([&] { heads.view({4, 12}); }).find("without a copy"), std::string::npos);
  EXPECT_EQ(heads.reshape({4, 12}).to_vector<float>(), heads.to_vector<float>());
}

TEST(Tensor, SizeMinusOneIsInferred) {
  EXPECT_EQ(iota({2, 6}).view({3, -1}).shape(), (Shape{3, 4}));
  EXPECT_NE(message_of([] {
              iota({2, 6}).view({5, -1});
            }).find("[2, 6] does not divide into [5, -1]"),
            std::string::npos);
}

TEST_P(Tensors, BroadcastArithmeticMatchesTheDefinition) {
  const Tensor a = iota({2, 1, 3}, device()), b = iota({4, 1}, device());
  const Tensor c = add(a, b);
  EXPECT_EQ(c.shape(), (Shape{2, 4, 3}));
  const auto va = a.to_vector<float>(), vb = b.to_vector<float>(), vc = c.to_vector<float>();
  for (size_t i = 0; i < 2; ++i)
    for (size_t j = 0; j < 4; ++j)
      for (size_t k = 0; k < 3; ++k) EXPECT_EQ(vc[(i * 4 + j) * 3 + k], va[i * 3 + k] + vb[j]);
  EXPECT_EQ(sum_to(c, {2, 1, 3}).to_vector<float>(), (std::vector<float>{6, 10, 14, 18, 22, 26}));
  EXPECT_NE(message_of([&] {
              add(iota({2, 3}, device()), iota({4}, device()));
            }).find("[2, 3] and [4] do not broadcast"),
            std::string::npos);
}

TEST_P(Tensors, EmptyTensorsAreLegal) {
  const Tensor none = Tensor::zeros({0, 5}, Dtype::f32, device());
  EXPECT_EQ(add(none, none).numel(), 0);
  EXPECT_EQ(sum(none, 0).to_vector<float>(), (std::vector<float>(5, 0.0f)));
  EXPECT_EQ(sum_all(none).item(), 0.0);
}

TEST(Tensor, Bf16RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(bf16(std::bit_cast<float>(0x3f808000u)).bits, 0x3f80);  // tie, even below
  EXPECT_EQ(bf16(std::bit_cast<float>(0x3f818000u)).bits, 0x3f82);  // tie, even above
  EXPECT_TRUE(std::isnan(static_cast<float>(bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isinf(static_cast<float>(bf16(3.4e38f))));
}

TEST(Tensor, WrongTypeIsNamed) {
  EXPECT_EQ(message_of([] { iota({2}).data<double>(); }),
            "tensor [2]: asked for f64 data of a f32 tensor");
}

TEST(Allocator, CountsLiveAndPeakAndReusesBlocks) {
  const int64_t before = memory_stats().live_bytes;
  reset_peak();
  void* first = nullptr;
  {
    const Tensor t = Tensor::empty({1000});
    first = t.raw();
    EXPECT_EQ(memory_stats().live_bytes, before + 4000);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % kAlignment, 0u);
  }
  EXPECT_EQ(memory_stats().live_bytes, before);
  EXPECT_EQ(memory_stats().peak_bytes, before + 4000);
  EXPECT_EQ(Tensor::empty({1000}).raw(), first);
}

TEST(Rng, PhiloxMatchesThePublishedVectors) {  // Random123 kat_vectors, philox 4x32 10
  RngKey zero;
  EXPECT_EQ(philox(zero, 0),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  RngKey ones;
  ones.key = ones.high = ~0ull;
  EXPECT_EQ(philox(ones, ~0ull),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Rng, NormalHasTheMomentsOfANormal) {
  const Tensor t = Tensor::empty({1 << 16}, Dtype::f64);
  fill_normal(t, RngKey(1, "test", "x"));
  const double n = static_cast<double>(t.numel());
  const double mean = sum_all(t).item() / n;
  const double square = sum_all(mul(t, t)).item() / n;
  const double fourth = sum_all(mul(mul(t, t), mul(t, t))).item() / n;
  EXPECT_NEAR(mean, 0.0, 5.0 / std::sqrt(n));
  EXPECT_NEAR(square, 1.0, 5.0 * std::sqrt(2.0 / n));
  EXPECT_NEAR(fourth, 3.0, 5.0 * std::sqrt(96.0 / n));
}

TEST(Tensor, SizesThatPass64BitsAreRefusedAndNotWrapped) {
  EXPECT_THROW(Tensor::empty({int64_t{1} << 32, int64_t{1} << 32}),
               Error);  // 0 elements modulo 2^64
  EXPECT_THROW(Tensor::empty({int64_t{1} << 40, int64_t{1} << 40, 0}), Error);
  EXPECT_THROW(Tensor::empty({int64_t{1} << 62}), Error);  // elements fit, bytes do not
  EXPECT_THROW(Tensor::empty({2, -1}), Error);
  EXPECT_EQ(Tensor::empty({5, 0, 7}).bytes(), 0);
}

}  // namespace
}  // namespace fovea
