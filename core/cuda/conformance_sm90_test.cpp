// SPDX-License-Identifier: Apache-2.0
#include "core/cuda/conformance_sm90_test.h"

#include <cmath>
#include <cstring>
#include <numeric>

#include "core/cuda/conformance_fixture.h"

#if defined(FOVEA_INTERPRETED)
#include "core/interpreter/machine.h"
#endif

namespace fovea {
namespace {

class Sm90 : public Conformance {
 protected:
  void SetUp() override {
    if (!runs_sm90(device())) GTEST_SKIP() << "needs a card of compute capability 9.0";
  }
};

// Runs f once, and on the interpreted device in three more orders of lanes and arrivals.
template <typename F>
void in_orders(Device device, F f) {
  f();
#if defined(FOVEA_INTERPRETED)
  if (device.kind != Device::Kind::interpreted) return;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    const auto before = interpreted::set_seed(seed);
    f();
    interpreted::set_seed(before);
  }
#endif
}

uint16_t to_bits(int value) { return bf16(static_cast<float>(value)).bits; }

// ---- products -----------------------------------------------------------------------------------

// Where value (r, k) of an operand with `rows` of m or n and 32 of k lies, in bytes: PTX ISA,
// "Canonical layouts" of wgmma, tiles stacked as TMA stacks its boxes.
size_t place(const OperandImage& image, size_t rows, size_t r, size_t k) {
  const auto span = static_cast<size_t>(span_bytes(image.swizzle));
  if (image.swizzle == Swizzle::none)
    return r / 8 * static_cast<size_t>(image.stride_bytes) +
           k / 8 * static_cast<size_t>(image.leading_bytes) + r % 8 * 16 + k % 8 * 2;
  const size_t line = image.mn_major ? k : r, lines = image.mn_major ? 32 : rows,
               byte = (image.mn_major ? r : k) * 2;
  const size_t chunk = byte % span / 16;
  const size_t moved = image.swizzle == Swizzle::b128  ? chunk ^ (line & 7)
                       : image.swizzle == Swizzle::b64 ? chunk ^ (line >> 1 & 3)
                                                       : chunk ^ (line >> 2 & 1);
  return byte / span * lines * span + line * span + moved * 16 + byte % 16;
}

OperandImage layout(bool mn_major, Swizzle swizzle, int rows) {
  OperandImage image{};
  const int span = span_bytes(swizzle);
  image.mn_major = mn_major;
  image.swizzle = swizzle;
  if (swizzle == Swizzle::none) {
    image.stride_bytes = 128;
    image.leading_bytes = rows / 8 * 128;
    image.next_k = 2 * image.leading_bytes;
  } else if (mn_major) {
    image.leading_bytes = 32 * span;
    image.next_k = 16 * span;
  } else {
    image.next_k = span == 32 ? rows * 32 : 32;
  }
  image.bytes = mn_major ? std::max(rows * 2, span) * 32 : rows * std::max(64, span);
  return image;
}

class Sm90Products : public Sm90 {
 protected:
  // a [64, 32] b [32, n], whole numbers: exact.
  void check(bool a_in_registers, OperandImage a, OperandImage b, int n, bool accumulate) {
    const auto N = static_cast<size_t>(n);
    const std::vector<int> A = draw(64 * 32, 9, 1), B = draw(32 * N, 9, 2), C = draw(64 * N, 99, 3);
    const auto image = [&](const OperandImage& layout, size_t rows, auto value) {
      std::vector<uint16_t> words(static_cast<size_t>(layout.bytes) / 2);
      for (size_t r = 0; r < rows; ++r)
        for (size_t k = 0; k < 32; ++k) words[place(layout, rows, r, k) / 2] = to_bits(value(r, k));
      return words;
    };
    const Values<uint16_t> a_values(
        image(a, 64, [&](size_t r, size_t k) { return A[r * 32 + k]; }));
    const Values<uint16_t> b_values(image(b, N, [&](size_t r, size_t k) { return B[k * N + r]; }));
    std::vector<uint32_t> registers(2 * 128 * 4);
    for (size_t step = 0; step < 2; ++step)
      for (size_t t = 0; t < 128; ++t)
        for (size_t v = 0; v < 8; ++v) {
          const size_t row = t / 32 * 16 + t % 32 / 4 + (v / 2 % 2 == 0 ? 0 : 8);
          const size_t column = step * 16 + (v < 4 ? 0 : 8) + t % 4 * 2 + v % 2;
          registers[(step * 128 + t) * 4 + v / 2] |= uint32_t{to_bits(A[row * 32 + column])}
                                                     << 16 * (v % 2);
        }
    std::vector<float> d(64 * N), expected(64 * N);
    for (size_t t = 0; t < 128; ++t)
      for (size_t v = 0; v < N / 2; ++v) {
        const size_t row = t / 32 * 16 + t % 32 / 4 + (v / 2 % 2 == 0 ? 0 : 8);
        const size_t column = v / 4 * 8 + t % 4 * 2 + v % 2;
        int sum = accumulate ? C[row * N + column] : 0;
        d[t * N / 2 + v] = static_cast<float>(C[row * N + column]);
        for (size_t k = 0; k < 32; ++k) sum += A[row * 32 + k] * B[k * N + column];
        expected[t * N / 2 + v] = static_cast<float>(sum);
      }
    a.values = a_values;
    b.values = b_values;
    in_orders(device(), [&] {
      Values<float> out(d);
      const Values<uint32_t> in_registers(registers);
      FOVEA_SM90_CALL(device(), conform_wgmma, out, a,
                      a_in_registers ? static_cast<uint32_t*>(in_registers) : nullptr, b, n,
                      accumulate, stream());
      EXPECT_EQ(out.get(), expected) << "n " << n << ", a "
                                     << (a_in_registers ? "registers"
                                         : a.mn_major   ? "mn"
                                                        : "k")
                                     << ' ' << span_bytes(a.swizzle) << ", b "
                                     << (b.mn_major ? "mn" : "k") << ' ' << span_bytes(b.swizzle);
    });
  }
};

TEST_P(Sm90Products, EverySwizzleAndMajor) {
  for (const Swizzle swizzle : {Swizzle::b32, Swizzle::b64, Swizzle::b128})
    for (const bool a_mn : {false, true})
      for (const bool b_mn : {false, true})
        check(false, layout(a_mn, swizzle, 64), layout(b_mn, Swizzle::b128, 64), 64, a_mn),
            check(false, layout(a_mn, Swizzle::b128, 64), layout(b_mn, swizzle, 64), 64, b_mn);
  check(false, layout(false, Swizzle::none, 64), layout(false, Swizzle::none, 64), 64, true);
}

TEST_P(Sm90Products, OfRegisters) {
  for (const Swizzle swizzle : {Swizzle::b32, Swizzle::b64, Swizzle::b128})
    for (const bool b_mn : {false, true})
      check(true, layout(false, swizzle, 64), layout(b_mn, swizzle, 64), 64, b_mn);
}

TEST_P(Sm90Products, OfSeveralWidths) {
  for (const int n : {32, 80, 176, 256})
    check(false, layout(false, Swizzle::b128, 64), layout(false, Swizzle::b128, n), n, true);
}

// ---- copies -------------------------------------------------------------------------------------

class Sm90Copies : public Sm90 {
 protected:
  // What tensor_map says against it, of bf16.
  static std::string refusal(const void* base, std::initializer_list<int64_t> dims,
                             std::initializer_list<int64_t> strides, std::initializer_list<int> box,
                             Swizzle swizzle) {
    try {
      FOVEA_SM90_CALL(device(), tensor_map, base, Dtype::bf16, dims, strides, box, swizzle);
    } catch (const Error& error) {
      return error.what();
    }
    return "none";
  }

  struct Case {
    std::vector<int64_t> dims, strides;  // elements
    std::vector<int> box, from, to;
    Swizzle swizzle;
    bool add;
  };

  // Of f32: the box at `from` of a tensor, its image in shared memory, and what a tensor of ones
  // becomes where the box goes to `to`.
  template <size_t kRank>
  void check(const Case& c) {
    constexpr Dtype kType = Dtype::f32;
    size_t count = static_cast<size_t>(c.dims[0]), elements = 1;
    for (size_t i = 1; i < kRank; ++i)
      count += static_cast<size_t>((c.dims[i] - 1) * c.strides[i - 1]);
    for (const int n : c.box) elements *= static_cast<size_t>(n);
    const std::vector<int> numbers = draw(count, 1000, 7);
    const std::vector<float> source(numbers.begin(), numbers.end());
    std::vector<float> image(elements), target(count, 1.0f);
    for (size_t e = 0; e < elements; ++e) {
      bool in_source = true, in_target = true;
      int64_t from = 0, to = 0;
      size_t left = e;
      for (size_t i = 0; i < kRank; ++i) {
        const auto x = static_cast<int>(left % static_cast<size_t>(c.box[i]));
        left /= static_cast<size_t>(c.box[i]);
        const int64_t stride = i == 0 ? 1 : c.strides[i - 1];
        in_source &= x + c.from[i] >= 0 && x + c.from[i] < c.dims[i];
        in_target &= x + c.to[i] >= 0 && x + c.to[i] < c.dims[i];
        from += (x + c.from[i]) * stride;
        to += (x + c.to[i]) * stride;
      }
      const float value = in_source ? source[static_cast<size_t>(from)] : 0.0f;
      const size_t mask = c.swizzle == Swizzle::b128  ? 7
                          : c.swizzle == Swizzle::b64 ? 3
                          : c.swizzle == Swizzle::b32 ? 1
                                                      : 0;
      const size_t byte = e * 4;
      image[(byte ^ ((byte >> 7 & mask) << 4)) / 4] = value;
      if (in_target) {
        float& changed = target[static_cast<size_t>(to)];
        changed = c.add ? changed + value : value;
      }
    }
    const Values<float> in(source);
    in_orders(device(), [&] {
      Values<float> out(count, 1.0f);
      Values<uint8_t> seen(elements * 4);
      const auto map = [&](const float* base) {
        const auto d = [&](size_t i) { return c.dims[i]; };
        const auto s = [&](size_t i) { return c.strides[i]; };
        const auto b = [&](size_t i) { return c.box[i]; };
        if constexpr (kRank == 1)
          return FOVEA_SM90_CALL(device(), tensor_map, base, kType, {d(0)}, {}, {b(0)}, c.swizzle);
        else if constexpr (kRank == 2)
          return FOVEA_SM90_CALL(device(), tensor_map, base, kType, {d(0), d(1)}, {s(0)},
                                 {b(0), b(1)}, c.swizzle);
        else if constexpr (kRank == 3)
          return FOVEA_SM90_CALL(device(), tensor_map, base, kType, {d(0), d(1), d(2)},
                                 {s(0), s(1)}, {b(0), b(1), b(2)}, c.swizzle);
        else if constexpr (kRank == 4)
          return FOVEA_SM90_CALL(device(), tensor_map, base, kType, {d(0), d(1), d(2), d(3)},
                                 {s(0), s(1), s(2)}, {b(0), b(1), b(2), b(3)}, c.swizzle);
        else
          return FOVEA_SM90_CALL(device(), tensor_map, base, kType, {d(0), d(1), d(2), d(3), d(4)},
                                 {s(0), s(1), s(2), s(3)}, {b(0), b(1), b(2), b(3), b(4)},
                                 c.swizzle);
      };
      Coordinates from{}, to{};
      std::copy(c.from.begin(), c.from.end(), from.x);
      std::copy(c.to.begin(), c.to.end(), to.x);
      FOVEA_SM90_CALL(device(), conform_tile, seen, static_cast<int>(elements * 4), map(in), from,
                      map(out), to, static_cast<int>(kRank), c.add, stream());
      std::vector<float> got(elements);
      std::memcpy(got.data(), seen.get().data(), elements * 4);
      EXPECT_EQ(got, image) << "rank " << kRank << ", swizzle " << span_bytes(c.swizzle);
      EXPECT_EQ(out.get(), target) << "rank " << kRank << ", swizzle " << span_bytes(c.swizzle);
    });
  }
};

TEST_P(Sm90Copies, BoxesOfOneDim) {
  for (const bool add : {false, true}) {
    check<1>({{40}, {}, {16}, {20}, {4}, Swizzle::none, add});
    check<1>({{40}, {}, {16}, {28}, {-4}, Swizzle::none, add});
  }
}
TEST_P(Sm90Copies, BoxesOfTwoDims) {
  for (const bool add : {false, true})
    check<2>({{20, 9}, {24}, {12, 4}, {4, 2}, {8, 5}, Swizzle::none, add});
}
TEST_P(Sm90Copies, BoxesOfThreeDims) {
  for (const bool add : {false, true})
    check<3>({{10, 6, 5}, {12, 72}, {8, 3, 2}, {4, 2, 3}, {0, 1, 2}, Swizzle::none, add});
}
TEST_P(Sm90Copies, BoxesOfFourDims) {
  for (const bool add : {false, true})
    check<4>(
        {{8, 3, 4, 3}, {8, 24, 100}, {4, 2, 2, 2}, {4, 0, 1, 1}, {4, 1, 2, 0}, Swizzle::none, add});
}
TEST_P(Sm90Copies, BoxesOfFiveDims) {
  for (const bool add : {false, true})
    check<5>({{4, 2, 3, 2, 3},
              {4, 8, 24, 48},
              {4, 2, 2, 1, 2},
              {0, 0, 1, 1, 1},
              {0, 0, 0, 0, 0},
              Swizzle::none,
              add});
}

TEST_P(Sm90Copies, EverySwizzle) {
  for (const bool add : {false, true}) {
    check<2>({{64, 40}, {64}, {32, 24}, {32, 8}, {0, 0}, Swizzle::b128, add});
    check<2>({{64, 40}, {64}, {16, 24}, {32, 8}, {16, 8}, Swizzle::b64, add});
    check<3>({{64, 40, 3}, {64, 2560}, {8, 12, 2}, {32, 8, 1}, {8, 0, 0}, Swizzle::b32, add});
  }
}

// Zeros come in, nothing goes out.
TEST_P(Sm90Copies, BoxesThatLeaveTheTensor) {
  for (const bool add : {false, true}) {
    check<2>({{37, 9}, {40}, {32, 8}, {20, 5}, {-8, -2}, Swizzle::b128, add});
    check<3>({{30, 6, 5}, {32, 192}, {16, 4, 2}, {-8, 4, -1}, {24, -3, 4}, Swizzle::b64, add});
    check<2>({{37, 9}, {40}, {32, 8}, {100, 100}, {40, 0}, Swizzle::b128, add});
  }
}

// A card stops with an illegal instruction, and takes no call after it.
TEST_P(Sm90Copies, BoxesOffSixteenBytesAreRefused) {
  if (device().kind == Device::Kind::cuda) GTEST_SKIP() << "ends the process's use of the card";
  try {
    check<2>({{20, 9}, {24}, {12, 4}, {3, 2}, {0, 0}, Swizzle::none, false});
    ADD_FAILURE() << "not refused";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what())
                  .find("load_tile at coordinate 3 of the innermost dim, byte 12; expected a "
                        "multiple of 16 bytes"),
              std::string::npos)
        << error.what();
  }
}

TEST_P(Sm90Copies, OfBytes) {
  const std::vector<int> numbers = draw(256, 1000, 8);
  const std::vector<float> values(numbers.begin(), numbers.end());
  std::vector<float> expected(256);
  for (size_t i = 0; i < 256; ++i) expected[i] = 1.0f + 3.0f * values[i];
  const Values<float> in(values);
  in_orders(device(), [&] {
    Values<float> out(256, 1.0f), copy(256);
    FOVEA_SM90_CALL(device(), conform_bulk, out, copy, in, 256, 3, stream());
    EXPECT_EQ(out.get(), expected);
    EXPECT_EQ(copy.get(), values);
  });
}

TEST_P(Sm90Copies, ThroughARingOfStages) {
  constexpr size_t kSteps = 11;
  const std::vector<int> numbers = draw(kSteps * 96, 1000, 9);
  const Values<float> in(std::vector<float>(numbers.begin(), numbers.end()));
  std::vector<float> expected(96);
  for (size_t i = 0; i < numbers.size(); ++i) expected[i % 96] += static_cast<float>(numbers[i]);
  for (const int stages : {1, 2, 3, 4})
    in_orders(device(), [&] {
      Values<float> out(96);
      FOVEA_SM90_CALL(device(), conform_ring, out, in, static_cast<int>(kSteps), stages, stream());
      EXPECT_EQ(out.get(), expected) << stages << " stages";
    });
}

TEST_P(Sm90Copies, OneLaneIsElected) {
  Values<int> out(1);
  FOVEA_SM90_CALL(device(), conform_elect, out, stream());
  EXPECT_EQ(out.get()[0], 1);
}

TEST_P(Sm90Copies, MapsThatADriverRefuses) {
  const Values<uint16_t> memory(4096);
  const uint16_t* at = memory;
  EXPECT_EQ(refusal(at, {64, 8}, {64}, {64, 8}, Swizzle::b128), "none");
  EXPECT_EQ(refusal(at + 4, {64, 8}, {64}, {64, 8}, Swizzle::b128),
            "tensor_map: the tensor does not begin at a multiple of 16 bytes");
  EXPECT_EQ(refusal(at, {60, 8}, {60}, {64, 8}, Swizzle::b128),
            "tensor_map: dim 1 has a stride of 120 bytes; expected a multiple of 16");
  EXPECT_EQ(refusal(at, {64, 8}, {64}, {64, 257}, Swizzle::b128),
            "tensor_map: a box of 257 in dim 1; expected 1 to 256");
  EXPECT_EQ(refusal(at, {128, 8}, {128}, {128, 8}, Swizzle::b128),
            "tensor_map: the innermost box has 256 bytes; expected the swizzle's 128");
  EXPECT_EQ(refusal(at, {64, 8}, {64}, {4, 8}, Swizzle::none),
            "tensor_map: the innermost box has 8 bytes; expected a multiple of 16");
  EXPECT_EQ(refusal(at, {64, 0}, {64}, {64, 8}, Swizzle::b128),
            "tensor_map: a dim of 0; expected 1 to 4294967296");
  EXPECT_EQ(
      refusal(at, {64, 8}, {64, 64}, {64, 8}, Swizzle::b128),
      "tensor_map: 2 dims, 2 strides, a box of 2; expected 1 to 5 dims, a stride for each but "
      "the first, a box of all");
}

// ---- together -----------------------------------------------------------------------------------

TEST_P(Sm90, ProductOfMatrices) {
  struct Size {
    size_t M, N, K;
  };
  for (const auto [M, N, K] : {Size{128, 128, 64}, Size{150, 136, 328}, Size{1, 8, 8}}) {
    const std::vector<int> A = draw(M * K, 3, 10), B = draw(N * K, 3, 11);
    std::vector<uint16_t> a(M * K), b(N * K), expected(M * N);
    for (size_t i = 0; i < a.size(); ++i) a[i] = to_bits(A[i]);
    for (size_t i = 0; i < b.size(); ++i) b[i] = to_bits(B[i]);
    for (size_t m = 0; m < M; ++m)
      for (size_t n = 0; n < N; ++n) {
        int sum = 0;
        for (size_t k = 0; k < K; ++k) sum += A[m * K + k] * B[n * K + k];
        expected[m * N + n] = to_bits(sum);
      }
    const Values<uint16_t> left(a), right(b);
    in_orders(device(), [&] {
      Values<uint16_t> out(M * N);
      FOVEA_SM90_CALL(device(), gemm_sm90, out, left, right, static_cast<int>(M),
                      static_cast<int>(N), static_cast<int>(K), stream());
      EXPECT_EQ(out.get(), expected) << M << " x " << N << " x " << K;
    });
  }
}

FOVEA_ON_GPUS(Sm90Products);
FOVEA_ON_GPUS(Sm90Copies);
FOVEA_ON_GPUS(Sm90);

}  // namespace
}  // namespace fovea
