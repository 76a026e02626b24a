// SPDX-License-Identifier: Apache-2.0
#include "core/ops/copy.h"

#include <algorithm>
#include <numeric>

#include "core/testing/devices.h"

namespace fovea {
namespace {

class Copies : public OnDevices {
 protected:
  static std::vector<float> iota(int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    std::iota(values.begin(), values.end(), 0.0f);
    return values;
  }
};

TEST_P(Copies, ValuesComeBackFromTheDevice) {
  for (const int64_t n : {1, 3, 63, 64, 1000, 4096}) {
    const Tensor t = Tensor::from(iota(n), {n}, device());
    EXPECT_EQ(t.device(), device());
    EXPECT_EQ(t.to_vector<float>(), iota(n));
    EXPECT_EQ(t.clone().to_vector<float>(), iota(n));
    const std::vector<float> all = iota(n);
    EXPECT_EQ(t.slice(0, n / 2, n).to(kCpu).to_vector<float>(),
              std::vector<float>(all.begin() + n / 2, all.end()));
  }
}

TEST_P(Copies, StridesBroadcastsAndConversionsMatchTheDefinition) {
  const Tensor t = Tensor::from(iota(2 * 3 * 4), {2, 3, 4}, device());
  EXPECT_EQ(t.permute({2, 0, 1}).contiguous().slice(0, 3, 4).to_vector<float>(),
            (std::vector<float>{3, 7, 11, 15, 19, 23}));
  const Tensor wide = Tensor::zeros({2, 3, 4}, Dtype::bf16, device());
  wide.copy_(t.slice(1, 1, 2));  // over the rows
  EXPECT_EQ(wide.to_vector<float>(),
            (std::vector<float>{4,  5,  6,  7,  4,  5,  6,  7,  4,  5,  6,  7,
                                16, 17, 18, 19, 16, 17, 18, 19, 16, 17, 18, 19}));
  wide.transpose(1, 2).slice(1, 1, 2).fill_(-0.5);
  EXPECT_EQ(wide.slice(0, 0, 1).to_vector<float>(),
            (std::vector<float>{4, -0.5, 6, 7, 4, -0.5, 6, 7, 4, -0.5, 6, 7}));
  for (const Dtype dtype : {Dtype::bf16, Dtype::i64, Dtype::i32, Dtype::u8}) {
    EXPECT_EQ(t.to(dtype).to(Dtype::f32).to_vector<float>(), iota(24)) << dtype;
    EXPECT_EQ(t.to(dtype).to(kCpu).to_vector<float>(), iota(24)) << dtype;
  }
  EXPECT_EQ(t.to(Dtype::boolean).to_vector<int64_t>()[0], 0);
  EXPECT_EQ(t.to(Dtype::boolean).to_vector<int64_t>()[23], 1);
  EXPECT_EQ(Tensor::full({}, 2.5, Dtype::f32, device()).item(), 2.5);
  EXPECT_EQ(Tensor::empty({0, 3}, Dtype::f32, device()).clone().numel(), 0);
}

// Vectors of 16 bytes, with every tail, and not a byte more.
TEST_P(Copies, CastsAndFillsOfAnyLengthTouchNothingElse) {
  for (const int64_t begin : {0, 1, 8}) {
    for (const int64_t n : {0, 1, 3, 7, 8, 9, 15, 17, 63, 65, 2047, 2049}) {
      const int64_t room = begin + n + 17;
      for (const auto& [from, to] :
           {std::pair{Dtype::f32, Dtype::bf16}, {Dtype::bf16, Dtype::f32}}) {
        const Tensor source = Tensor::from(iota(room), {room}, device()).to(from),
                     out = Tensor::full({room}, -1.0, to, device());
        out.slice(0, begin, begin + n).copy_(source.slice(0, 0, n));
        std::vector<float> expected(static_cast<size_t>(room), -1.0f);
        const std::vector<float> rounded = source.to(kCpu).to(to).to(Dtype::f32).to_vector<float>();
        std::copy_n(rounded.begin(), n, expected.begin() + begin);
        EXPECT_EQ(out.to(kCpu).to(Dtype::f32).to_vector<float>(), expected)
            << n << " from " << begin << ' ' << to;
      }
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::i64, Dtype::i32, Dtype::u8}) {
        const Tensor out = Tensor::full({room}, 3.0, dtype, device());
        out.slice(0, begin, begin + n).fill_(7.0);
        std::vector<float> expected(static_cast<size_t>(room), 3.0f);
        std::fill_n(expected.begin() + begin, n, 7.0f);
        EXPECT_EQ(out.to(kCpu).to(Dtype::f32).to_vector<float>(), expected)
            << n << " from " << begin << ' ' << dtype;
      }
    }
  }
  constexpr int64_t kNoFloat = (int64_t{1} << 24) + 1;
  EXPECT_EQ(
      Tensor::full({5}, static_cast<double>(kNoFloat), Dtype::i64, device()).to_vector<int64_t>(),
      std::vector<int64_t>(5, kNoFloat));
}

TEST_P(Copies, F64StaysOnTheCpu) {
  if (has_f64()) {
    EXPECT_EQ(Tensor::full({2}, 0.1, Dtype::f64, device()).to_vector<double>()[1], 0.1);
    return;
  }
  const Tensor t = Tensor::full({2}, 0.5, Dtype::f32, device());
  EXPECT_EQ(t.to_vector<double>()[1], 0.5);
  EXPECT_THROW(t.to(Dtype::f64), Error);
}

FOVEA_ON_DEVICES(Copies);

TEST(Devices, NamesAreReadAndRefused) {
  EXPECT_EQ(parse_device("cpu"), kCpu);
  for (const Device device : devices_of_build()) EXPECT_EQ(parse_device(name(device.kind)), device);
  for (const char* text : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1", "interpreted:0"})
    EXPECT_THROW(parse_device(text), Error) << text;
}

}  // namespace
}  // namespace fovea
