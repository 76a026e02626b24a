// SPDX-License-Identifier: Apache-2.0
#include "core/ops/matmul.h"

#include <cmath>
#include <functional>

#include "core/parallel.h"
#include "core/rng.h"
#include "core/testing/devices.h"

namespace fovea {
namespace {

// Deterministic values in (-1, 1).
Tensor values(const Shape& shape, Dtype dtype, uint64_t seed, Device device = kCpu) {
  std::vector<float> v(static_cast<size_t>(shape.numel()));
  uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
  for (float& x : v) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    x = static_cast<float>(static_cast<double>(state >> 40) / (1 << 23) - 1.0);
  }
  return Tensor::from(v, shape).to(dtype).to(device);
}

// out + bias + a b by double loops; a [batch, m, k], b [batch, k, n] (read through to_vector, so
// any strides)
std::vector<double> plain(const Tensor& a, const Tensor& b, const Tensor& start) {
  const int64_t m = a.dim(-2), k = a.dim(-1), n = b.dim(-1);
  const int64_t batch = a.numel() / std::max<int64_t>(m * k, 1);
  const auto x = a.to_vector<double>(), y = b.to_vector<double>();
  auto out = start.to_vector<double>();
  const int64_t y_batch = b.rank() == 2 ? 0 : k * n;
  for (int64_t s = 0; s < (m * k == 0 ? 0 : batch); ++s) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0;
        for (int64_t l = 0; l < k; ++l)
          sum += x[static_cast<size_t>((s * m + i) * k + l)] *
                 y[static_cast<size_t>(s * y_batch + l * n + j)];
        out[static_cast<size_t>((s * m + i) * n + j)] += sum;
      }
    }
  }
  return out;
}

// Rounding of k terms of size < 1 added in dtype, plus the rounding of the result and `more`.
void expect_close(const Tensor& got, const std::vector<double>& want, int64_t k, Dtype in,
                  const std::string& what, double more = 0.0) {
  const double sum_epsilon = in == Dtype::f64 ? 2.3e-16 : 1.2e-7;
  const double result_epsilon = got.dtype() == Dtype::bf16 ? 4e-3 : sum_epsilon;
  const auto values_got = got.to_vector<double>();
  ASSERT_EQ(values_got.size(), want.size()) << what;
  for (size_t i = 0; i < want.size(); ++i) {
    const double bound = sum_epsilon * static_cast<double>(k + 2) +
                         result_epsilon * (std::abs(want[i]) + 1e-3) + more;
    ASSERT_LE(std::abs(values_got[i] - want[i]), bound)
        << what << " element " << i << " got " << values_got[i] << " want " << want[i];
  }
}

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

struct Types {
  Dtype in, out;
};
const Types kTypes[] = {{Dtype::f32, Dtype::f32},
                        {Dtype::bf16, Dtype::bf16},
                        {Dtype::bf16, Dtype::f32},
                        {Dtype::f64, Dtype::f64}};

class Matmul : public OnDevices {
 protected:
  static std::vector<Types> types() {
    std::vector<Types> known;
    for (const Types& t : kTypes)
      if (has_f64() || t.in != Dtype::f64) known.push_back(t);
    return known;
  }
  static Tensor values(const Shape& shape, Dtype dtype, uint64_t seed) {
    return fovea::values(shape, dtype, seed, device());
  }
  // a [m, k] stored as itself or transposed
  static Tensor operand(int64_t rows, int64_t columns, bool transposed, Dtype dtype,
                        uint64_t seed) {
    return transposed ? values({columns, rows}, dtype, seed).transpose(0, 1)
                      : values({rows, columns}, dtype, seed);
  }
  // There a strided copy takes a fiber an element.
  static bool is_slow() { return device().kind == Device::Kind::interpreted; }
  static Tensor zeros(const Shape& shape, Dtype dtype) {
    return Tensor::zeros(shape, dtype, device());
  }
};
FOVEA_ON_DEVICES(Matmul);

TEST_P(Matmul, AgreesWithPlainLoopsOverShapesAndTransposes) {
  const int64_t sizes[][3] = {{1, 1, 1},      {1, 7, 5},      {5, 1, 3},      {3, 5, 1},
                              {6, 64, 16},    {7, 65, 17},    {5, 63, 15},    {64, 64, 64},
                              {65, 65, 65},   {96, 192, 256}, {97, 193, 257}, {95, 191, 255},
                              {13, 101, 300}, {127, 31, 129}};
  for (const auto& [in, out] : types()) {
    for (const auto& [m, n, k] : sizes) {
      if (is_slow() && m * n > 1000) continue;
      for (int t = 0; t < 4; ++t) {
        const Tensor a = operand(m, k, t & 1, in, 1), b = operand(k, n, t & 2, in, 2);
        const std::string what =
            concat(in, "->", out, " m ", m, " n ", n, " k ", k, " transposes ", t);
        expect_close(matmul(a, b, {.dtype = out}), plain(a, b, Tensor::zeros({m, n}, out)), k, in,
                     what);
      }
    }
  }
}

TEST_P(Matmul, AddsIntoAViewAndTouchesNothingAroundIt) {
  for (const auto& [in, out] : types()) {
    for (const int64_t m : {1, 6, 33, 129}) {
      for (const int64_t n : {1, 17, 130}) {
        if (is_slow() && m * n > 800) continue;
        const int64_t k = is_slow() ? 20 : 70;
        const Tensor a = values({m, k + 3}, in, 3).slice(1, 2, k + 2),
                     b = values({n, k + 5}, in, 4).slice(1, 1, k + 1).transpose(0, 1);
        const Tensor frame = values({m + 2, n + 9}, out, 5);
        const Tensor before = frame.clone();
        const Tensor inside = frame.slice(0, 1, m + 1).slice(1, 4, n + 4);
        const auto want = plain(a, b, inside);
        matmul_into(inside, a, b, true);
        expect_close(inside, want, k, in, concat("accumulate ", in, "->", out, " m ", m, " n ", n));
        matmul_into(inside, a, b, false);
        expect_close(inside, plain(a, b, Tensor::zeros({m, n}, out)), k, in,
                     concat("overwrite ", in, "->", out, " m ", m, " n ", n));
        inside.copy_(before.slice(0, 1, m + 1).slice(1, 4, n + 4));
        EXPECT_EQ(frame.to_vector<double>(), before.to_vector<double>())
            << "wrote outside its view";
      }
    }
  }
}

TEST_P(Matmul, WritesATransposedResult) {
  for (const auto& [in, out] : types()) {
    const Tensor a = values({70, 80}, in, 6), b = values({80, 90}, in, 7);
    const Tensor result = values({90, 70}, out, 8).transpose(0, 1);
    const auto want = plain(a, b, result);
    matmul_into(result, a, b, true);
    expect_close(result, want, 80, in, concat("transposed result ", in));
  }
}

TEST_P(Matmul, AddsTheBiasToEveryRow) {
  for (const auto& [in, out] : types()) {
    for (const int64_t m : {3, 130}) {
      for (const Dtype bias_dtype : {Dtype::f32, Dtype::bf16, Dtype::f64}) {
        if (bias_dtype == Dtype::f64 && !has_f64()) continue;
        const Tensor a = values({m, 66}, in, 9), b = values({66, 70}, in, 10);
        const Tensor bias = values({70}, bias_dtype, 11);
        const Tensor start = bias.to(kCpu).to(Dtype::f64).expand({m, 70}).contiguous();
        const bool rounded = device().kind == Device::Kind::cuda && out == Dtype::bf16;
        expect_close(
            matmul(a, b, {.bias = in == Dtype::f64 ? bias.to(Dtype::f64) : bias, .dtype = out}),
            plain(a, b, start), bias_dtype == Dtype::f64 ? 67 + 2 : 67, in,
            concat("bias ", bias_dtype, " for ", in, "->", out, " m ", m), rounded ? 2e-3 : 0.0);
      }
    }
  }
}

TEST_P(Matmul, BatchesOfAnyStrides) {
  for (const auto& [in, out] : types()) {
    for (const int64_t n : {9, 70}) {
      if (is_slow() && n > 9) continue;
      // equal leading axes, b and a transposed inside a [B, n, H, k] layout
      const Tensor a = values({2, n, 3, 65}, in, 12).transpose(1, 2);  // [2, 3, n, 65]
      const Tensor b =
          values({2, n + 1, 3, 65}, in, 13).transpose(1, 2).transpose(2, 3);  // [2, 3, 65, n + 1]
      expect_close(matmul(a, b, {.dtype = out}), plain(a, b, Tensor::zeros({2, 3, n, n + 1}, out)),
                   65, in, concat("batch ", in, " n ", n));
      // one matrix for the whole batch: leading axes that merge, and that do not
      const Tensor w = values({n, 65}, in, 14).transpose(0, 1);
      const Tensor merged = values({2, 3, n, 65}, in, 15);
      expect_close(matmul(merged, w, {.dtype = out}),
                   plain(merged, w, Tensor::zeros({2, 3, n, n}, out)), 65, in, "shared b, merged");
      expect_close(matmul(a, w, {.dtype = out}), plain(a, w, Tensor::zeros({2, 3, n, n}, out)), 65,
                   in, "shared b, strided");
      // a result whose batch axes are not in order
      const Tensor result = values({2, n, 3, n + 1}, out, 16).transpose(1, 2);
      const auto want = plain(a, b, result);
      matmul_into(result, a, b, true);
      expect_close(result, want, 65, in, "batched result view");
      // rows of size 1 with a leading axis
      const Tensor rows = values({5, 1, 65}, in, 17);
      expect_close(matmul(rows, w, {.dtype = out}), plain(rows, w, Tensor::zeros({5, 1, n}, out)),
                   65, in, "one row each");
    }
  }
}

TEST_P(Matmul, StretchedAndStridedOperandsAreCopied) {
  const Tensor a = values({1, 70}, Dtype::f32, 18).expand({66, 70});
  const Tensor b = values({70, 40, 2}, Dtype::f32, 19).select(2, 1);
  expect_close(matmul(a, b), plain(a, b, Tensor::zeros({66, 40})), 70, Dtype::f32, "stretched");
}

// Operands of f32 products, in a scope that allows it, are those of tf32; no others are.
TEST_P(Matmul, Tf32RoundsTheOperandsOfF32Products) {
  const int64_t m = 17, k = 96, n = 24;
  const Tensor a = values({m, k}, Dtype::f32, 30), b = values({n, k}, Dtype::f32, 31),
               zero = Tensor::zeros({m, n});
  const auto product = [&] { return matmul(a, b.transpose(0, 1)); };
  const Tensor before = product();
  expect_close(before, plain(a, b.transpose(0, 1), zero), k, Dtype::f32, "f32");
  Tensor rounded;
  {
    const Tf32Scope allowed;
    rounded = product();
    const Tensor a16 = a.to(Dtype::bf16), b16 = b.to(Dtype::bf16).transpose(0, 1);
    expect_close(matmul(a16, b16, {.dtype = Dtype::f32}), plain(a16, b16, zero), k, Dtype::f32,
                 "bf16");
    const Tf32Scope not_allowed(false);
    EXPECT_EQ(product().to_vector<float>(), before.to_vector<float>());
  }
  EXPECT_EQ(product().to_vector<float>(), before.to_vector<float>());
  // Each of k products of numbers below 1 is off by less than 2 2^-11 of it.
  expect_close(rounded, plain(a, b.transpose(0, 1), zero), k, Dtype::f32, "tf32",
               static_cast<double>(k) * 0x1p-10);
  if (device().is_cpu()) {
    EXPECT_EQ(rounded.to_vector<float>(), before.to_vector<float>());
    return;
  }
  if (device().kind == Device::Kind::cuda) return;  // rounds where that is faster
  const auto round = [](const Tensor& t) {
    std::vector<float> v = t.to_vector<float>();
    for (float& x : v) x = round_to_tf32(x);
    return Tensor::from(v, t.shape());
  };
  EXPECT_NE(rounded.to_vector<float>(), before.to_vector<float>());
  expect_close(rounded, plain(round(a), round(b).transpose(0, 1), zero), k, Dtype::f32,
               "rounded operands");
}

TEST_P(Matmul, EmptyAxes) {
  for (const auto& [in, out] : types()) {
    EXPECT_EQ(matmul(zeros({0, 3}, in), zeros({3, 4}, in), {.dtype = out}).shape(), (Shape{0, 4}));
    EXPECT_EQ(matmul(zeros({2, 3}, in), zeros({3, 0}, in), {.dtype = out}).shape(), (Shape{2, 0}));
    EXPECT_EQ(matmul(zeros({0, 2, 3}, in), zeros({0, 3, 5}, in), {.dtype = out}).shape(),
              (Shape{0, 2, 5}));
    const Tensor a = zeros({2, 0}, in), b = zeros({0, 3}, in);
    EXPECT_EQ(matmul(a, b, {.dtype = out}).to_vector<double>(), std::vector<double>(6, 0.0));
    const Tensor bias = Tensor::full({3}, 2.0, in, device());
    EXPECT_EQ(matmul(a, b, {.bias = bias, .dtype = out}).to_vector<double>(),
              std::vector<double>(6, 2.0));
    const Tensor result = Tensor::full({2, 3}, 7.0, out, device());
    matmul_into(result, a, b, true);
    EXPECT_EQ(result.to_vector<double>(), std::vector<double>(6, 7.0));
    matmul_into(result, a, b, false);
    EXPECT_EQ(result.to_vector<double>(), std::vector<double>(6, 0.0));
  }
}

TEST(MatmulOnCpu, TheSameBitsForAnyNumberOfThreads) {
  const int threads = num_threads();
  for (const auto& [in, out] : kTypes) {
    for (const int64_t m : {50, 200}) {
      const Tensor a = values({m, 384}, in, 20), b = values({150, 384}, in, 21).transpose(0, 1);
      set_num_threads(1);
      const auto one = matmul(a, b, {.dtype = out}).to_vector<double>();
      for (const int count : {2, 3}) {
        set_num_threads(count);
        EXPECT_EQ(matmul(a, b, {.dtype = out}).to_vector<double>(), one)
            << in << " m " << m << ' ' << count << " threads";
      }
      set_num_threads(threads);
    }
  }
}

// Also where oneDNN's own choices depend on it: many terms, a row or two past the pieces, batches.
TEST(MatmulOnCpu, FixedProductsHaveTheSameBitsForAnyNumberOfThreads) {
  const int threads = num_threads();
  const FixedProducts fixed;
  for (const auto& [in, out] : kTypes) {
    for (const Shape& shape : {Shape{96, 512}, Shape{65, 256}, Shape{258, 512}, Shape{3, 70, 90}}) {
      const Tensor a = values(shape, in, 22);
      Shape other = shape;
      other[-2] = shape[-1], other[-1] = 100;
      const Tensor b = values(other, in, 23);
      const std::string what = concat(in, ' ', shape);
      set_num_threads(1);
      const Tensor one = matmul(a, b, {.dtype = out});
      expect_close(one, plain(a, b, Tensor::zeros(one.shape(), out)), shape[-1], in, what);
      for (const int count : {2, 3}) {
        set_num_threads(count);
        EXPECT_EQ(matmul(a, b, {.dtype = out}).to_vector<double>(), one.to_vector<double>())
            << what << ' ' << count << " threads";
      }
      set_num_threads(threads);
    }
  }
}

TEST(MatmulOnCpu, WrongInputsAreNamed) {
  const Tensor a = Tensor::zeros({2, 3}), b = Tensor::zeros({4, 5});
  EXPECT_EQ(message_of([&] { matmul(a, b); }),
            "matmul: a is [2, 3] and b [4, 5]; the last axis of a and the last but one of b differ "
            "(3 != 4)");
  EXPECT_NE(
      message_of([&] { matmul(Tensor::zeros({3}), b); }).find("a is [3] and b [4, 5]; both need"),
      std::string::npos);
  EXPECT_NE(message_of([&] {
              matmul(Tensor::zeros({2, 3, 4}), Tensor::zeros({3, 4, 5}));
            }).find("a is [2, 3, 4] and b [3, 4, 5]; the leading axes differ"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              matmul(a, Tensor::zeros({3, 5}, Dtype::bf16));
            }).find("is f32 and b [3, 5] is bf16"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              matmul(a, Tensor::zeros({3, 5}), {.dtype = Dtype::bf16});
            }).find("asked for bf16"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              matmul(a, Tensor::zeros({3, 5}), {.bias = Tensor::zeros({4})});
            }).find("bias is f32 [4]"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              matmul_into(Tensor::zeros({2, 4}), a, Tensor::zeros({3, 5}), false);
            }).find("out is [2, 4]"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              matmul_into(Tensor::zeros({2, 5, 2}).select(2, 0), a, Tensor::zeros({3, 5}), false);
            }).find("one of the last two must be 1"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              matmul(Tensor::zeros({2, 3}, Dtype::i64), Tensor::zeros({3, 2}, Dtype::i64));
            }).find("found i64"),
            std::string::npos);
}

TEST_P(Matmul, OperandsOnTwoDevicesAreRefused) {
  if (device().is_cpu()) return;
  const Tensor a = zeros({2, 3}, Dtype::f32), b = Tensor::zeros({3, 5});
  EXPECT_EQ(message_of([&] { matmul(a, b); }),
            concat("matmul: a [2, 3] is on ", device(),
                   " and b [3, 5] on cpu; move one with Tensor::to"));
  EXPECT_NE(message_of([&] {
              matmul_into(Tensor::zeros({2, 5}), a, b.to(device()), false);
            }).find("out [2, 5] is on cpu"),
            std::string::npos);
}

TEST_P(Matmul, NanAndInfinityStayInTheirRow) {
  const Tensor a = Tensor::from(std::vector<float>{1, INFINITY, 2, NAN, 3, 4}, {3, 2}, device());
  const auto c = matmul(a, Tensor::full({2, 1}, 1.0, Dtype::f32, device())).to_vector<float>();
  EXPECT_EQ(c[0], INFINITY);
  EXPECT_TRUE(std::isnan(c[1]));
  EXPECT_EQ(c[2], 7.0f);
}

}  // namespace
}  // namespace fovea
