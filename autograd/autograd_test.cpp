// SPDX-License-Identifier: Apache-2.0
// The engine: accumulation, several outputs, memory, and what it refuses.
#include <string>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "autograd/recompute.h"
#include "core/ops/elementwise.h"
#include "core/rng.h"
#include "core/testing/devices.h"

namespace fovea {
namespace {

Variable leaf(const Shape& shape, const char* name, Dtype dtype = Dtype::f64,
              Device device = kCpu) {
  const Tensor value = Tensor::empty(shape, dtype, device);
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
    const Tensor& given = dout[0].defined() ? dout[0] : dout[1];
    const Tensor dx = Tensor::zeros(shape_, given.dtype(), given.device());
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

// In f64, or f32 where there is none.
class Tape : public OnDevices {
 protected:
  static Dtype dtype() { return has_f64() ? Dtype::f64 : Dtype::f32; }
  static double epsilon() { return has_f64() ? 1e-15 : 1e-6; }
  static Variable leaf(const Shape& shape, const char* name) {
    return fovea::leaf(shape, name, dtype(), device());
  }
  static Tensor full(const Shape& shape, double value) {
    return Tensor::full(shape, value, dtype(), device());
  }
};
FOVEA_ON_DEVICES(Tape);

TEST_P(Tape, ALeafUsedTwiceGetsBothGradients) {
  const Variable x = leaf({3}, "x");
  const auto value = x.value().to_vector<double>();
  add(mul(x, x), scale(x, 3.0)).backward(full({3}, 1.0));
  EXPECT_EQ(x.grad().device(), device());
  for (size_t i = 0; i < 3; ++i)
    EXPECT_NEAR(x.grad().to_vector<double>()[i], 2.0 * value[i] + 3.0, 10.0 * epsilon());
  add(x, x).backward(full({3}, 1.0));  // a second graph adds to what is there
  EXPECT_NEAR(x.grad().to_vector<double>()[0], 2.0 * value[0] + 5.0, 10.0 * epsilon());
}

TEST(Autograd, AHookIsCalledOncePerUseAfterTheGradientHasGrown) {
  const Variable x = leaf({3}, "x");
  std::vector<double> seen;
  x.on_gradient([&] { seen.push_back(x.grad().to_vector<double>()[0]); });
  const Variable once =
      recompute([&](const Variables& in) { return Variables{mul(in[0], x)}; }, {leaf({3}, "y")})[0];
  const Variable twice = scale(x, 2.0);
  sum_all(add(add(once, twice), x)).backward();
  ASSERT_EQ(seen.size(), 3u);  // newest first: x, 2 x, y x
  EXPECT_EQ(seen[0], 1.0);
  EXPECT_EQ(seen[1], 3.0);
  EXPECT_EQ(seen[2], x.grad().to_vector<double>()[0]);
  x.on_gradient(nullptr);
  sum_all(x).backward();
  EXPECT_EQ(seen.size(), 3u);
}

TEST_P(Tape, AnOutputThatNobodyUsesArrivesAsAbsent) {
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

TEST_P(Tape, MemoryIsFreedAsBackwardProceeds) {
  const int64_t size = device().is_cpu() ? 1 << 16 : 1 << 12, bytes = size * 4;
  const Variable x = fovea::leaf({size}, "x", Dtype::f32, device());
  const int64_t before = memory_stats(device()).live_bytes;
  Variable y = x;
  for (int i = 0; i < 8; ++i) y = mul(y, y);
  EXPECT_EQ(memory_stats(device()).live_bytes, before + 8 * bytes);
  const Variable loss = sum_all(y);
  y = Variable();
  reset_peak(device());
  loss.backward();
  EXPECT_LE(memory_stats(device()).peak_bytes, before + 8 * bytes + 4 * bytes + 1024);
  EXPECT_LE(memory_stats(device()).live_bytes, before + bytes + 1024);  // the gradient of x
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

TEST_P(Tape, RecomputeGivesTheSameGradientsAndHoldsOnlyItsInputs) {
  const auto f = [](const Variables& in) -> Variables {
    return {mul(mul(in[0], in[1]), in[0]), add(in[0], in[1])};
  };
  const Variable a = leaf({7}, "a"), b = leaf({7}, "b");
  backward(f({a, b}), {full({7}, 2.0), full({7}, -1.0)});
  const auto da = a.grad().to_vector<double>(), db = b.grad().to_vector<double>();
  a.zero_grad();
  b.zero_grad();
  backward(recompute(f, {a, b}), {full({7}, 2.0), full({7}, -1.0)});
  EXPECT_EQ(a.grad().to_vector<double>(), da);
  EXPECT_EQ(b.grad().to_vector<double>(), db);
}

TEST_P(Tape, AGradientFromAnotherDeviceIsRefused) {
  if (device().is_cpu()) return;
  const Variable x = leaf({2}, "x");
  EXPECT_EQ(message_of([&] { scale(x, 2.0).backward(Tensor::zeros({2})); }),
            concat("backward: seed [2] is on cpu but the variable on ", device()));
  EXPECT_EQ(message_of([&] { x.set_grad(Tensor::zeros({2})); }),
            concat("set_grad: gradient [2] is on cpu but the variable on ", device()));
  EXPECT_NE(message_of([&] {
              concat({x, fovea::leaf({2}, "y", Dtype::f32)}, 0);
            }).find("concat: part [2] is on cpu"),
            std::string::npos);
}

}  // namespace
}  // namespace fovea
