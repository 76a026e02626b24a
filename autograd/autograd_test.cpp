// SPDX-License-Identifier: Apache-2.0
// The engine: accumulation, several outputs, memory, and what it refuses.
#include <gtest/gtest.h>

#include <string>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "autograd/recompute.h"
#include "core/ops/elementwise.h"
#include "core/rng.h"

namespace fovea {
namespace {

Variable leaf(const Shape& shape, const char* name, Dtype dtype = Dtype::f64) {
  const Tensor value = Tensor::empty(shape, dtype);
  fill_normal(value, RngKey(1, "test", name));
  return Variable(value, true);
}

// y = x^2 with a derivative that is wrong on purpose
class WrongSquareFn final : public Function {
 public:
  const char* name() const override { return "wrong_square"; }
  Tensor forward(const Tensor& x) {
    save(x);
    return mul(x, x);
  }
  Tensors backward(const Tensors& dout) override {
    const auto [x] = saved<1>();
    return {mul(dout[0], scale(x, 2.001))};
  }
};

class HalvesFn final : public Function {
 public:
  const char* name() const override { return "halves"; }
  Tensors forward(const Tensor& x) {
    shape_ = x.shape();
    const int64_t half = x.dim(0) / 2;
    return {x.slice(0, 0, half).clone(), x.slice(0, half, x.dim(0)).clone()};
  }
  Tensors backward(const Tensors& dout) override {
    const Tensor dx = Tensor::zeros(shape_, Dtype::f64);
    const int64_t half = shape_[0] / 2;
    if (dout[0].defined()) dx.slice(0, 0, half).copy_(dout[0]);
    if (dout[1].defined()) dx.slice(0, half, shape_[0]).copy_(dout[1]);
    return {dx};
  }

 private:
  Shape shape_;
};

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Autograd, ALeafUsedTwiceGetsBothGradients) {
  const Variable x = leaf({3}, "x");
  add(mul(x, x), scale(x, 3.0)).backward(Tensor::full({3}, 1.0, Dtype::f64));
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_DOUBLE_EQ(x.grad().to_vector<double>()[i], 2.0 * x.value().to_vector<double>()[i] + 3.0);
  }
  add(x, x).backward(Tensor::full({3}, 1.0, Dtype::f64));  // a second graph adds to what is there
  EXPECT_DOUBLE_EQ(x.grad().to_vector<double>()[0], 2.0 * x.value().to_vector<double>()[0] + 5.0);
}

TEST(Autograd, AnOutputThatNobodyUsesArrivesAsAbsent) {
  const Variable x = leaf({4}, "x");
  const Variables halves = record(make<HalvesFn>(), x);
  sum_all(halves[1]).backward();
  EXPECT_EQ(x.grad().to_vector<double>(), (std::vector<double>{0, 0, 1, 1}));
}

TEST(Autograd, GradcheckCatchesAWrongGradientAndNamesTheEntry) {
  const std::string message = message_of([] {
    gradcheck([](const Variables& in) { return record(make<WrongSquareFn>(), in[0]); },
              {leaf({5}, "x")});
  });
  EXPECT_NE(message.find("gradcheck: input 0 [5], element"), std::string::npos) << message;
}

TEST(Autograd, NothingIsRecordedUnderNoGrad) {
  const Variable x = leaf({2}, "x");
  const NoGrad no_grad;
  EXPECT_FALSE(mul(x, x).requires_grad());
}

TEST(Autograd, MemoryIsFreedAsBackwardProceeds) {
  const int64_t size = 1 << 16, bytes = size * 4;
  const Variable x = leaf({size}, "x", Dtype::f32);
  const int64_t before = memory_stats().live_bytes;
  Variable y = x;
  for (int i = 0; i < 8; ++i) y = mul(y, y);
  EXPECT_EQ(memory_stats().live_bytes, before + 8 * bytes);
  const Variable loss = sum_all(y);
  y = Variable();
  reset_peak();
  loss.backward();
  EXPECT_LE(memory_stats().peak_bytes, before + 8 * bytes + 4 * bytes + 1024);
  EXPECT_LE(memory_stats().live_bytes, before + bytes + 1024);  // the gradient of x
}

TEST(Autograd, ASecondBackwardIsRefusedByName) {
  const Variable x = leaf({2}, "x");
  const Variable loss = sum_all(mul(x, x));
  loss.backward();
  EXPECT_NE(message_of([&] { loss.backward(); }).find("sum: backward ran twice"),
            std::string::npos);
}

TEST(Autograd, BackwardWithoutAGradientOrASeedIsRefused) {
  EXPECT_THROW(Variable(Tensor::zeros({1})).backward(), Error);
  EXPECT_NE(message_of([] {
              scale(leaf({2}, "x"), 2.0).backward();
            }).find("seed gradient is needed for shape [2]"),
            std::string::npos);
}

TEST(Autograd, RecomputeGivesTheSameGradientsAndHoldsOnlyItsInputs) {
  const auto f = [](const Variables& in) -> Variables {
    return {mul(mul(in[0], in[1]), in[0]), add(in[0], in[1])};
  };
  const Variable a = leaf({7}, "a"), b = leaf({7}, "b");
  backward(f({a, b}), {Tensor::full({7}, 2.0, Dtype::f64), Tensor::full({7}, -1.0, Dtype::f64)});
  const auto da = a.grad().to_vector<double>(), db = b.grad().to_vector<double>();
  a.zero_grad();
  b.zero_grad();
  backward(recompute(f, {a, b}),
           {Tensor::full({7}, 2.0, Dtype::f64), Tensor::full({7}, -1.0, Dtype::f64)});
  EXPECT_EQ(a.grad().to_vector<double>(), da);
  EXPECT_EQ(b.grad().to_vector<double>(), db);
}

}  // namespace
}  // namespace fovea
