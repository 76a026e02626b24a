// SPDX-License-Identifier: Apache-2.0
#include "nn/loss.h"

#include "autograd/ops.h"
#include "autograd/recompute.h"
#include "core/cuda/device.h"
#include "nn/cuda/on_devices.h"

namespace fovea::nn {
namespace {

class LossOn : public OnDevices {
 protected:
  static Tensor labels(int64_t rows, int64_t classes, bool ignore_some) {
    std::vector<int64_t> values(static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; ++r)
      values[static_cast<size_t>(r)] = ignore_some && r % 3 == 1 ? -100 : r * 7 % classes;
    return Tensor::from(values, {rows});
  }
  // Rows that add up to one, and some zeros.
  static Tensor distributions(int64_t rows, int64_t classes) {
    std::vector<float> values(static_cast<size_t>(rows * classes));
    for (int64_t r = 0; r < rows; ++r) {
      float total = 0.0f;
      for (int64_t j = 0; j < classes; ++j) {
        float& t = values[static_cast<size_t>(r * classes + j)];
        t = static_cast<float>((r + j * j) % 5 + (classes < 5));
        total += t;
      }
      for (int64_t j = 0; j < classes; ++j)
        values[static_cast<size_t>(r * classes + j)] /= std::max(total, 1.0f);
    }
    return Tensor::from(values, {rows, classes});
  }
};

// Up to 1024 classes a warp a row, above a block.
const std::vector<int64_t> kClasses = {2, 10, 63, 65, 127, 1000, 1025, 3001};

TEST_P(LossOn, CrossEntropyFollowsTheDefinition) {
  for (const int64_t v : kClasses) {
    const int64_t rows = v >= 1000 ? 2 : 9;
    for (const bool with_all : {false, true}) {
      const CrossEntropyOptions options{with_all ? 0.1 : 0.0, -100, with_all ? 1e-2 : 0.0};
      const Tensor targets = labels(rows, v, with_all);
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        for (const bool targets_there : {false, true}) {
          if (targets_there && v >= 1000) continue;
          const auto f = [&](const Variables& in) {
            const Device at = targets_there ? in[0].value().device() : kCpu;
            return Variables{cross_entropy(in[0], targets.to(at), options)};
          };
          const Tensors inputs{exact_tensor({rows, v}, "l")};
          expect_close(run_layer(f, inputs, {dtype}, device()), run_exactly(f, inputs), dtype,
                       concat(v, " classes"));
        }
      }
    }
  }
}

// Of whose rows a part has no room in shared memory; the second row begins off 16 bytes.
TEST_P(LossOn, RowsLongerThanSharedMemory) {
  if (device().is_cpu()) return;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const int64_t v = known_device(device()).shared_bytes / size_of(dtype) + 701;
    std::vector<float> values(static_cast<size_t>(2 * v));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 37 % 101) / 32.0f;
    const Tensor x = Tensor::from(values, {2, v}),
                 targets = Tensor::from(std::vector<int64_t>{v - 3, 5}, {2});
    const auto f = [&](const Variables& in) {
      return Variables{cross_entropy(in[0], targets, {0.1})};
    };
    expect_close(run_layer(f, {x}, {dtype}, device()), run_exactly(f, {x}), dtype, "a long row");
  }
}

// The gradient is the same, bit for bit, whether it lies in the logits' memory or not, and it lies
// there only where nobody else can see.
TEST_P(LossOn, OverwritesLogitsThatNobodyElseSees) {
  for (const int64_t v : {40, 1027}) {
    const Tensor targets = labels(2, v, true);
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Variable leaf(exact_tensor({2, v}, "l").to(dtype).to(device()), true);
      const Tensor values = leaf.value().clone();
      const int64_t bytes = values.bytes();
      // The gradient of 2 `leaf`, by a loss of these logits; and what the loss allocates.
      struct Outcome {
        std::vector<float> gradient;
        int64_t allocated;
      };
      const auto run = [&](const std::function<Variable(Variable)>& loss_of) {
        leaf.zero_grad();
        Variable logits = scale(leaf, 2.0);
        const int64_t before = memory_stats(device()).live_bytes;
        const Variable loss = loss_of(std::move(logits));
        const int64_t allocated = memory_stats(device()).live_bytes - before;
        loss.backward();
        return Outcome{leaf.grad().to_vector<float>(), allocated};
      };
      const Outcome given_up =
          run([&](Variable l) { return cross_entropy(std::move(l), targets, {0.1}); });
      EXPECT_LT(given_up.allocated, bytes);
      Variable other;
      Tensor view;
      for (const auto& seen : std::vector<std::function<Variable(Variable)>>{
               [&](const Variable& l) { return cross_entropy(l, targets, {0.1}); },
               [&](Variable l) {
                 other = l;
                 return cross_entropy(std::move(l), targets, {0.1});
               },
               [&](Variable l) {
                 view = l.value().slice(0, 1, 2);
                 return cross_entropy(std::move(l), targets, {0.1});
               }}) {
        const Outcome elsewhere = run(seen);
        EXPECT_EQ(elsewhere.gradient, given_up.gradient) << v << ' ' << dtype;
        EXPECT_GE(elsewhere.allocated, bytes);
      }
      const Tensor twice = scale(Variable(values), 2.0).value();
      EXPECT_EQ(other.value().to_vector<float>(), twice.to_vector<float>());
      EXPECT_EQ(view.to_vector<float>(), twice.slice(0, 1, 2).to_vector<float>());
    }
  }
}

// Two losses of the same logits, and a function that has kept them for its own backward.
TEST_P(LossOn, LogitsWithOtherUses) {
  const Tensor targets = labels(4, 30, false), others = labels(4, 30, true);
  const auto f = [&](const Variables& in) {
    Variable l = scale(in[0], 2.0);
    const Variable square = mul(l, l);
    const Variable both = add(cross_entropy(l, others), mean_all(square));
    return Variables{add(both, cross_entropy(std::move(l), targets))};
  };
  const Tensors inputs{exact_tensor({4, 30}, "l")};
  expect_close(run_layer(f, inputs, {Dtype::f32}, device()), run_exactly(f, inputs), Dtype::f32,
               "several uses");
  const auto again = [&](const Variables& in) { return recompute(f, in); };
  expect_same_bits(run_layer(again, inputs, {Dtype::f32}, device()),
                   run_layer(f, inputs, {Dtype::f32}, device()));
}

// What backward is given, known before and not.
TEST_P(LossOn, TheGradientOfTheLossIsScaledWhereItWasNotKnown) {
  for (const int64_t v : {33, 1027}) {
    const Tensor targets = labels(2, v, true);
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensor values = exact_tensor({2, v}, "l").to(dtype).to(device());
      const auto gradient = [&](double known, double given) {
        const Variable l(values, true);
        CrossEntropyOptions options;
        if (known != 1.0) options.dloss = Tensor::full({}, known, Dtype::f32, device());
        cross_entropy(l, targets, options).backward(Tensor::full({}, given, Dtype::f32, device()));
        return l.grad().to(kCpu).to(Dtype::f32);
      };
      const Tensor one = gradient(1.0, 1.0), quarter = gradient(0.25, 0.25),
                   third = gradient(1.0 / 3.0, 1.0 / 3.0);
      EXPECT_EQ(scale(Variable(one), 0.25).value().to_vector<float>(), quarter.to_vector<float>());
      const double bound = dtype == Dtype::f32 ? 1e-6 : 6e-3;  // three roundings
      EXPECT_LT(relative_error(scale(Variable(one), 1.0 / 3.0).value(), third), bound);
      for (const double known : {1.0, 0.25, 1.0 / 3.0}) {
        for (const double given : {1.0, 0.25, 1.0 / 3.0}) {
          if (v > 1024 && known >= given) continue;
          const Tensor expected = given == 1.0 ? one : given == 0.25 ? quarter : third;
          EXPECT_LT(relative_error(gradient(known, given), expected), bound)
              << known << ' ' << given << ' ' << dtype;
        }
      }
      EXPECT_EQ(gradient(0.25, 0.0).to_vector<float>(),
                scale(Variable(one), 0.0).value().to_vector<float>());
    }
  }
  if (device().is_cpu()) return;
  const Variable l(Tensor::zeros({1, 3}, Dtype::f32, device()), true);
  CrossEntropyOptions elsewhere;
  elsewhere.dloss = Tensor::full({}, 2.0);
  EXPECT_EQ(error_of([&] { cross_entropy(l, labels(1, 3, false), elsewhere); }),
            concat("cross_entropy: the input is on ", device(),
                   " but the gradient of the loss is on cpu"));
}

TEST_P(LossOn, SoftTargetsAndDivergence) {
  for (const int64_t v : {2, 10, 127, 1030}) {
    const Tensor targets = distributions(5, v);
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensors inputs{exact_tensor({5, v}, "l")};
      const auto soft = [&](const Variables& in) {
        return Variables{cross_entropy_soft(in[0], targets, {0.2})};
      };
      expect_close(run_layer(soft, inputs, {dtype}, device()), run_exactly(soft, inputs), dtype,
                   concat("soft ", v));
      const auto kl = [&](const Variables& in) { return Variables{kl_divergence(in[0], targets)}; };
      expect_close(run_layer(kl, inputs, {dtype}, device()), run_exactly(kl, inputs), dtype,
                   concat("kl ", v));
    }
  }
}

TEST_P(LossOn, LargeLogitsBadLabelsAndNothingToScore) {
  const Variable l(Tensor::from(std::vector<float>{1e4f, -1e4f, 0.0f}, {1, 3}, device()), true);
  const Tensor one = Tensor::from(std::vector<int64_t>{1}, {1}, device());
  EXPECT_FLOAT_EQ(static_cast<float>(cross_entropy(l, one).value().item()), 2e4f);
  for (const Device at : {kCpu, device()}) {
    EXPECT_EQ(error_of([&] { cross_entropy(l, Tensor::from(std::vector<int64_t>{3}, {1}, at)); }),
              "cross_entropy: row 0 has label 3, outside the 3 classes");
  }
  const Variable certain(Tensor::full({2, 1}, 3.0, Dtype::f32, device()));
  EXPECT_NEAR(cross_entropy(certain, labels(2, 1, false)).value().item(), 0.0, 1e-6);
  const Variable none = cross_entropy(l, Tensor::from(std::vector<int64_t>{-100}, {1}, device()));
  none.backward();
  EXPECT_EQ(none.value().item(), 0.0);
  EXPECT_EQ(l.grad().to_vector<float>(), (std::vector<float>{0.0f, 0.0f, 0.0f}));
  const Variable empty(Tensor::empty({0, 3}, Dtype::f32, device()), true);
  const Variable loss = cross_entropy(empty, Tensor::empty({0}, Dtype::i64));
  loss.backward();
  EXPECT_EQ(loss.value().item(), 0.0);
  EXPECT_EQ(empty.grad().shape(), (Shape{0, 3}));
}

TEST_P(LossOn, ANanStaysInItsRow) {
  std::vector<float> x(60, 0.25f);
  x[25] = std::nanf("");
  x[47] = -INFINITY;
  const Variable l(Tensor::from(x, {3, 20}, device()), true);
  const Variable loss = cross_entropy(l, labels(3, 20, false));
  loss.backward();
  EXPECT_TRUE(std::isnan(loss.value().item()));
  const std::vector<float> d = l.grad().to_vector<float>();
  for (size_t i = 0; i < d.size(); ++i) EXPECT_EQ(std::isnan(d[i]), i / 20 == 1) << i;
}

TEST_P(LossOn, RepeatsItsBits) {
  const Tensors inputs{exact_tensor({70, 50}, "l")};
  const auto f = [&](const Variables& in) {
    return Variables{cross_entropy(in[0], labels(70, 50, true), {0.1})};
  };
  expect_same_bits(run_layer(f, inputs, {Dtype::f32}, device()),
                   run_layer(f, inputs, {Dtype::f32}, device()));
}

TEST_P(LossOn, PointLossesFollowTheDefinition) {
  if (device().is_cpu()) return;
  for (const Shape& shape : {Shape{1}, Shape{3, 5}, Shape{65, 63}, Shape{4, 2500}}) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensors inputs{exact_tensor(shape, "x")};
      const Tensor target = distributions(1, shape.numel()).view(shape);
      const auto squared = [&](const Variables& in) {
        const Tensor t = in[0].dtype() == Dtype::f64 ? target.to(Dtype::f64) : target.to(device());
        return Variables{mse(in[0], t)};
      };
      expect_close(run_layer(squared, inputs, {dtype}, device()), run_exactly(squared, inputs),
                   dtype, concat("mse ", shape));
      const auto binary = [&](const Variables& in) {
        return Variables{bce_with_logits(in[0], target)};
      };
      expect_close(run_layer(binary, inputs, {dtype}, device()), run_exactly(binary, inputs), dtype,
                   concat("bce ", shape));
    }
  }
  EXPECT_EQ(error_of([&] {
              bce_with_logits(Variable(Tensor::zeros({1}, Dtype::f32, device())),
                              Tensor::full({1}, 1.5));
            }),
            "bce_with_logits: target 0 is 1.5; expected a probability");
}

FOVEA_ON_DEVICES(LossOn);

}  // namespace
}  // namespace fovea::nn
