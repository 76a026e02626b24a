// SPDX-License-Identifier: Apache-2.0
// Arithmetic, roundings, copies to shared memory, matrices in registers.
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "core/cuda/conformance_fixture.h"

namespace fovea {
namespace {

constexpr float kInf = INFINITY;

class ValueConformance : public Conformance {};

// ---- arithmetic ---------------------------------------------------------------------------------

// Within a relative error of 2^-22, which the PTX ISA promises of each; what is special, exactly.
TEST_P(ValueConformance, FastFunctions) {
  const float subnormal = 0x1p-130f;
  const std::vector<float> x = {0.0f,      -0.0f,      1.0f,   -1.0f,   0.3f,     -0.3f,
                                3.75f,     -17.2f,     100.1f, -125.9f, 127.9f,   -127.5f,
                                -140.0f,   128.0f,     1e-20f, 1e20f,   0x1p127f, -0x1p127f,
                                subnormal, -subnormal, kInf,   -kInf,   NAN};
  const auto flush = [](double y) { return std::abs(y) < 0x1p-126 ? std::copysign(0.0, y) : y; };
  struct Function {
    Unary how;
    double (*f)(double);
  };
  for (const auto& [how, f] :
       {Function{Unary::exp2, [](double v) { return std::exp2(v); }},
        Function{Unary::reciprocal, [](double v) { return 1.0 / v; }},
        Function{Unary::rsqrt, [](double v) { return 1.0 / std::sqrt(v); }}}) {
    const Values<float> in(x);
    Values<float> out(x.size());
    FOVEA_GPU_CALL(device(), conform_unary, out, in, how, static_cast<int>(x.size()), stream());
    out.get();
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = flush(f(flush(x[i])));
      if (std::isnan(expected)) {
        EXPECT_TRUE(std::isnan(out[i])) << x[i];
      } else if (expected == 0.0 || std::abs(expected) > 3.4028235e38) {
        EXPECT_EQ(out[i], static_cast<float>(expected)) << x[i];
      } else {
        EXPECT_LE(std::abs(out[i] - expected), 0x1p-22 * std::abs(expected)) << x[i];
      }
    }
  }
}

TEST_P(ValueConformance, FusedMultiplyAddAndExtremes) {
  const float e = 0x1p-12f;
  const Values<float> a(std::vector<float>{1.0f + e, 3.0f, 0.1f, NAN, -2.0f});
  const Values<float> b(std::vector<float>{1.0f - e, -5.0f, 10.0f, 7.0f, -2.5f});
  const Values<float> c(std::vector<float>{-1.0f, 0.5f, -1.0f, 1.0f, 1e30f});
  Values<float> out(15);
  FOVEA_GPU_CALL(device(), conform_fma, out, a, b, c, 5, stream());
  out.get();
  EXPECT_EQ(out[0], -0x1p-24f);  // 0 where the product is rounded first
  EXPECT_EQ(out[6], static_cast<float>(double{0.1f} * 10.0 - 1.0));
  EXPECT_EQ(out[3], -14.5f);
  EXPECT_EQ(out[4], 3.0f);
  EXPECT_EQ(out[5], -5.0f);
  EXPECT_EQ(out[10], 7.0f);  // of a number and a NaN, the number
  EXPECT_EQ(out[11], 7.0f);
  EXPECT_EQ(out[13], -2.0f);
  EXPECT_EQ(out[14], -2.5f);
}

// The nearer of the two values around x that keep `bits` low bits of zero, with a rule for ties.
uint32_t round_to(float x, int bits, bool ties_to_even) {
  const uint32_t unit = 1u << bits, below = std::bit_cast<uint32_t>(x) & ~(unit - 1),
                 above = below + unit;
  const auto value = [](uint32_t word) {
    const float f = std::bit_cast<float>(word);
    return std::isinf(f) ? std::copysign(0x1p128, f) : double{f};
  };
  const double down = std::abs(x - value(below)), up = std::abs(value(above) - x);
  if (down != up) return down < up ? below : above;
  if (ties_to_even) return (below & unit) == 0 ? below : above;
  return above;
}

std::vector<float> numbers_to_round() {
  std::vector<float> x = {0.0f,           -0.0f,    1.0f,   3.4028235e38f,
                          -3.4028235e38f, 3.39e38f, 1e-40f, -1e-45f};
  for (const uint32_t word : {0x3f808000u, 0x3f818000u, 0x3f807fffu, 0x3f808001u, 0xbf818000u,
                              0x3f801000u, 0x3f803000u, 0x3f800fffu, 0xbf801000u, 0x3fffffffu})
    x.push_back(std::bit_cast<float>(word));
  RngKey key;
  for (uint64_t i = 0; i < 200; ++i) {
    const float f = std::bit_cast<float>(random_word(key, i));
    if (std::isfinite(f)) x.push_back(f);
  }
  return x;
}

TEST_P(ValueConformance, Bf16Pairs) {
  std::vector<float> x = numbers_to_round();
  const size_t finite = x.size();
  for (const float special : {kInf, -kInf, NAN, -NAN, std::bit_cast<float>(0x7f800001u)})
    x.push_back(special);
  const Values<float> low(x), high(std::vector<float>(x.rbegin(), x.rend()));
  Values<uint32_t> out(x.size());
  const int n = static_cast<int>(x.size());
  FOVEA_GPU_CALL(device(), conform_pack, out, low, high, n, stream());
  const std::vector<uint32_t> pairs = out.get();
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t halves[2] = {pairs[i] << 16, pairs[x.size() - 1 - i] & 0xffff0000u};
    for (const uint32_t half : halves) {
      if (i < finite)
        EXPECT_EQ(half, round_to(x[i], 16, true)) << x[i];
      else if (std::isnan(x[i]))
        EXPECT_TRUE(std::isnan(std::bit_cast<float>(half)));
      else
        EXPECT_EQ(std::bit_cast<float>(half), x[i]);
    }
  }
  std::vector<float> as_floats(pairs.size());
  std::memcpy(as_floats.data(), pairs.data(), pairs.size() * 4);
  const Values<float> in(as_floats);
  for (const Unary how : {Unary::low, Unary::high}) {
    Values<float> half(x.size());
    FOVEA_GPU_CALL(device(), conform_unary, half, in, how, n, stream());
    half.get();
    for (size_t i = 0; i < x.size(); ++i) {
      const uint32_t expected = how == Unary::low ? pairs[i] << 16 : pairs[i] & 0xffff0000u;
      EXPECT_EQ(std::bit_cast<uint32_t>(half[i]), expected);
    }
  }
}

TEST_P(ValueConformance, Tf32) {
  std::vector<float> x = numbers_to_round();
  const size_t finite = x.size();
  for (const float special : {kInf, -kInf, NAN}) x.push_back(special);
  const Values<float> in(x);
  Values<float> out(x.size());
  FOVEA_GPU_CALL(device(), conform_unary, out, in, Unary::tf32, static_cast<int>(x.size()),
                 stream());
  out.get();
  for (size_t i = 0; i < x.size(); ++i) {
    if (i < finite)
      EXPECT_EQ(std::bit_cast<uint32_t>(out[i]), round_to(x[i], 13, false)) << x[i];
    else if (std::isnan(x[i]))
      EXPECT_TRUE(std::isnan(out[i]));
    else
      EXPECT_EQ(out[i], x[i]);
  }
}

// ---- copies, matrices ---------------------------------------------------------------------------

TEST_P(ValueConformance, AsynchronousCopies) {
  std::vector<float> x(384);
  std::iota(x.begin(), x.end(), 1.0f);
  const Values<float> in(x);
  for (const int valid : {16, 12, 8, 4, 0}) {
    Values<float> out(384, -1.0f);
    FOVEA_GPU_CALL(device(), conform_copy_async, out, in, valid, stream());
    out.get();
    for (size_t i = 0; i < 384; ++i)
      EXPECT_EQ(out[i], static_cast<int>(i % 4) * 4 < valid ? x[i] : 0.0f) << valid;
  }
}

constexpr size_t kPitch = 24;

// Where matrix m of a tile begins.
size_t corner(size_t m) { return m % 2 * 8 * kPitch + m / 2 * 8; }

TEST_P(ValueConformance, MatricesToAndFromSharedMemory) {
  std::vector<uint16_t> tile(16 * kPitch);
  std::iota(tile.begin(), tile.end(), uint16_t{1000});
  const Values<uint16_t> in(tile);
  for (const bool transposed : {false, true}) {
    Values<uint32_t> out(128);
    FOVEA_GPU_CALL(device(), conform_load_matrices, out, in, transposed, stream());
    out.get();
    for (size_t lane = 0; lane < 32; ++lane) {
      for (size_t m = 0; m < 4; ++m) {
        const size_t row = lane / 4, column = lane % 4 * 2;
        const auto element = [&](size_t i, size_t j) {
          return uint32_t{tile[corner(m) + (transposed ? j * kPitch + i : i * kPitch + j)]};
        };
        EXPECT_EQ(out[lane * 4 + m], element(row, column) | element(row, column + 1) << 16);
      }
    }
  }
  std::vector<uint32_t> registers(128);
  for (size_t i = 0; i < 128; ++i)
    registers[i] = static_cast<uint32_t>(i * 2) | static_cast<uint32_t>(i * 2 + 1) << 16;
  std::vector<uint16_t> expected(16 * kPitch, 7);
  for (size_t lane = 0; lane < 32; ++lane)
    for (size_t m = 0; m < 4; ++m)
      for (size_t half = 0; half < 2; ++half)
        expected[corner(m) + lane / 4 * kPitch + lane % 4 * 2 + half] =
            static_cast<uint16_t>((lane * 4 + m) * 2 + half);
  Values<uint16_t> stored(16 * kPitch);
  FOVEA_GPU_CALL(device(), conform_store_matrices, stored, Values<uint32_t>(registers), stream());
  EXPECT_EQ(stored.get(), expected);
}

TEST_P(ValueConformance, TransposesAMatrix) {
  const auto element = [](size_t i, size_t j) { return static_cast<uint32_t>(100 * i + j); };
  std::vector<uint32_t> pairs(32), expected(32);
  for (size_t lane = 0; lane < 32; ++lane) {
    const size_t row = lane / 4, column = lane % 4 * 2;
    pairs[lane] = element(row, column) | element(row, column + 1) << 16;
    expected[lane] = element(column, row) | element(column + 1, row) << 16;
  }
  Values<uint32_t> out(32);
  FOVEA_GPU_CALL(device(), conform_transpose, out, Values<uint32_t>(pairs), stream());
  EXPECT_EQ(out.get(), expected);
}

// Whole numbers, whose products and sums are exact. Layouts: PTX ISA, "Matrix Fragments for
// mma.m16n8k16 with floating point type" and "... mma.m16n8k8 with .tf32".
TEST_P(ValueConformance, ProductsOfMatrices) {
  for (const bool tf32 : {false, true}) {
    const size_t depth = tf32 ? 8 : 16;
    const std::vector<int> A = draw(16 * depth, 9, 4), B = draw(depth * 8, 9, 5),
                           C = draw(16 * 8, 99, 6);
    const auto bits = [](int value) { return std::bit_cast<uint32_t>(static_cast<float>(value)); };
    std::vector<uint32_t> a(128, 0), b(64, 0);
    std::vector<float> d(128), expected(128);
    for (size_t lane = 0; lane < 32; ++lane) {
      const size_t group = lane / 4, in_group = lane % 4;
      for (size_t i = 0; i < (tf32 ? 4u : 8u); ++i) {
        const size_t row = tf32 ? (i % 2 == 0 ? group : group + 8)
                                : (i < 2 || (i >= 4 && i < 6) ? group : group + 8);
        const size_t column =
            tf32 ? in_group + (i < 2 ? 0 : 4) : in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
        const uint32_t word = bits(A[row * depth + column]);
        if (tf32)
          a[lane * 4 + i] = word;
        else
          a[lane * 4 + i / 2] |= word >> 16 << (16 * (i % 2));
      }
      for (size_t i = 0; i < (tf32 ? 2u : 4u); ++i) {
        const size_t row = tf32 ? in_group + 4 * i : in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
        const uint32_t word = bits(B[row * 8 + group]);
        if (tf32)
          b[lane * 2 + i] = word;
        else
          b[lane * 2 + i / 2] |= word >> 16 << (16 * (i % 2));
      }
      for (size_t i = 0; i < 4; ++i) {
        const size_t row = i < 2 ? group : group + 8, column = in_group * 2 + (i & 1);
        int sum = C[row * 8 + column];
        d[lane * 4 + i] = static_cast<float>(sum);
        for (size_t k = 0; k < depth; ++k) sum += A[row * depth + k] * B[k * 8 + column];
        expected[lane * 4 + i] = static_cast<float>(sum);
      }
    }
    Values<float> out(d);
    FOVEA_GPU_CALL(device(), conform_mma, out, Values<uint32_t>(a), Values<uint32_t>(b), tf32,
                   stream());
    EXPECT_EQ(out.get(), expected) << (tf32 ? "tf32" : "bf16");
  }
}

TEST_P(ValueConformance, VectorsOfAllWidths) {
  std::vector<uint8_t> x(256);
  std::iota(x.begin(), x.end(), uint8_t{0});
  const Values<uint8_t> in(x);
  for (const int width : {2, 4, 8, 16}) {
    Values<uint8_t> out(256);
    FOVEA_GPU_CALL(device(), conform_vectors, out, in, width, stream());
    EXPECT_EQ(out.get(), std::vector<uint8_t>(x.rbegin(), x.rend())) << width;
  }
}

FOVEA_ON_GPUS(ValueConformance);

}  // namespace
}  // namespace fovea
