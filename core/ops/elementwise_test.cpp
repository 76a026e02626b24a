// SPDX-License-Identifier: Apache-2.0
#include "core/ops/elementwise.h"

#include <cmath>
#include <functional>
#include <limits>

#include "core/rng.h"
#include "core/testing/devices.h"

namespace fovea {
namespace {

class Arithmetic : public OnDevices {
 protected:
  static Tensor normal(const Shape& shape, Dtype dtype, const char* name) {
    const Tensor t = Tensor::empty(shape);
    fill_normal(t, RngKey(1, "test", name));
    return t.to(dtype).to(device());
  }
  // f(a, b) in f64 for every element, against what was found.
  static void expect(const Tensor& found, const Tensor& a, const Tensor& b, const std::string& what,
                     const std::function<double(double, double)>& f) {
    const auto x = a.expand(found.shape()).to_vector<float>(),
               y = b.expand(found.shape()).to_vector<float>(), got = found.to_vector<float>();
    const double epsilon = found.dtype() == Dtype::bf16 ? 4e-3 : 2.4e-7;
    for (size_t i = 0; i < got.size(); ++i) {
      const double want = f(static_cast<double>(x[i]), static_cast<double>(y[i]));
      const double size = std::abs(want) + std::abs(static_cast<double>(x[i])) +
                          std::abs(static_cast<double>(y[i]));
      ASSERT_NEAR(static_cast<double>(got[i]), want, epsilon * size) << what << " element " << i;
    }
  }
  static void expect_all(const Tensor& a, const Tensor& b) {
    const std::string what = concat(a.dtype(), ' ', a.shape(), " and ", b.dtype(), ' ', b.shape());
    const bool both = a.dtype() == Dtype::bf16 && b.dtype() == Dtype::bf16;
    EXPECT_EQ(add(a, b).dtype(), both ? Dtype::bf16 : Dtype::f32);
    EXPECT_EQ(add(a, b).device(), device());
    expect(add(a, b), a, b, what + " add", [](double x, double y) { return x + y; });
    expect(sub(a, b), a, b, what + " sub", [](double x, double y) { return x - y; });
    expect(mul(a, b), a, b, what + " mul", [](double x, double y) { return x * y; });
    expect(div(a, b), a, b, what + " div", [](double x, double y) { return x / y; });
  }
};

const Dtype kTypes[] = {Dtype::f32, Dtype::bf16};

TEST_P(Arithmetic, FollowsTheDefinitionAtEverySize) {
  for (const int64_t n : {1, 3, 63, 65, 1000, 4100})
    for (const Dtype left : kTypes)
      for (const Dtype right : kTypes) expect_all(normal({n}, left, "a"), normal({n}, right, "b"));
}

TEST_P(Arithmetic, BroadcastsAndStridesFollowTheDefinition) {
  for (const Dtype left : kTypes) {
    for (const Dtype right : kTypes) {
      const Tensor a = normal({3, 5, 16}, left, "a");
      expect_all(a, normal({16}, right, "row"));       // wide runs
      expect_all(a, normal({5, 1}, right, "column"));  // one value a run
      expect_all(normal({3, 1, 16}, left, "planes"), normal({5, 1}, right, "column"));
      expect_all(a, normal({}, right, "one"));
      expect_all(a.transpose(0, 2), normal({5, 1}, right, "column"));
      expect_all(a.slice(2, 1, 14), normal({13}, right, "odd"));  // runs that are not aligned
      expect_all(a.slice(1, 1, 4), normal({3, 3, 16}, right, "cut"));
      expect_all(normal({7, 9}, left, "m"), normal({9, 7}, right, "n").transpose(0, 1));
    }
  }
}

TEST_P(Arithmetic, WithANumber) {
  for (const Dtype dtype : kTypes) {
    for (const int64_t n : {1, 63, 1000}) {
      const Tensor a = normal({n}, dtype, "a");
      expect(scale(a, -1.5), a, a, "scale", [](double x, double) { return -1.5 * x; });
      expect(add_scalar(a, 0.25), a, a, "add_scalar", [](double x, double) { return x + 0.25; });
    }
    const Tensor a = normal({6, 10}, dtype, "a").transpose(0, 1);
    expect(scale(a, 3.0), a, a, "scale of a view", [](double x, double) { return 3.0 * x; });
  }
}

TEST_P(Arithmetic, InPlaceKeepsTheDtypeAndTouchesOnlyItsView) {
  for (const Dtype left : kTypes) {
    for (const Dtype right : kTypes) {
      for (const int64_t columns : {7, 16}) {
        const Tensor frame = normal({5, columns + 2}, left, "frame"), before = frame.clone();
        const Tensor y = frame.slice(1, 1, columns + 1), x = normal({columns}, right, "x");
        const Tensor old = y.clone();
        axpy_(y, 0.5, x);
        expect(y, old, x, "axpy_", [](double a, double b) { return a + 0.5 * b; });
        scale_(y, 2.0);
        expect(y, old, x, "scale_", [](double a, double b) { return 2.0 * a + b; });
        y.copy_(old);
        EXPECT_EQ(frame.to_vector<float>(), before.to_vector<float>());
        const Tensor whole = normal({3, columns}, left, "whole"), was = whole.clone();
        axpy_(whole, -2.0, x);
        expect(whole, was, x, "axpy_", [](double a, double b) { return a - 2.0 * b; });
      }
    }
  }
}

TEST_P(Arithmetic, NanAndInfinityPassThrough) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  for (const Dtype dtype : kTypes) {
    const Tensor a =
        Tensor::from(std::vector<float>{inf, -inf, nan, 1.0f, 0.0f}, {5}, device()).to(dtype);
    const Tensor b =
        Tensor::from(std::vector<float>{inf, 1.0f, 1.0f, 0.0f, 0.0f}, {5}, device()).to(dtype);
    const auto difference = sub(a, b).to_vector<float>(), quotient = div(a, b).to_vector<float>();
    EXPECT_TRUE(std::isnan(difference[0]));
    EXPECT_EQ(difference[1], -inf);
    EXPECT_TRUE(std::isnan(difference[2]));
    EXPECT_EQ(difference[3], 1.0f);
    EXPECT_EQ(quotient[3], inf);
    EXPECT_TRUE(std::isnan(quotient[4]));
    EXPECT_TRUE(std::isnan(scale(a, 0.0).to_vector<float>()[0]));
  }
}

TEST_P(Arithmetic, EmptyTensorsAreLegal) {
  const Tensor none = Tensor::empty({0, 5}, Dtype::f32, device());
  EXPECT_EQ(add(none, none).shape(), (Shape{0, 5}));
  EXPECT_EQ(mul(none, normal({5}, Dtype::bf16, "b")).shape(), (Shape{0, 5}));
  EXPECT_EQ(scale(none, 2.0).numel(), 0);
  axpy_(none, 1.0, none);
  scale_(none, 2.0);
}

TEST_P(Arithmetic, OperandsOnTwoDevicesAreRefused) {
  if (device().is_cpu()) return;
  const Tensor here = Tensor::zeros({2, 3}), there = normal({3}, Dtype::f32, "b");
  const auto message_of = [](const std::function<void()>& f) -> std::string {
    try {
      f();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message_of([&] { add(here, there); }),
            concat("add: [2, 3] is on cpu and [3] on ", device(), "; move one with Tensor::to"));
  EXPECT_EQ(message_of([&] { axpy_(there, 1.0, here.select(0, 0)); }),
            concat("axpy_: [3] is on ", device(), " and [3] on cpu; move one with Tensor::to"));
}

FOVEA_ON_DEVICES(Arithmetic);

}  // namespace
}  // namespace fovea
