// SPDX-License-Identifier: Apache-2.0
// Optimizers on every device of the build against the cpu's.
#include <cmath>

#include "core/cuda/device.h"
#include "core/testing/devices.h"
#include "train/optim/optimizer.h"

namespace fovea::train {
namespace {

class DeviceOptimizer : public OnDevices {
 protected:
  static Tensor random(const Shape& shape, const std::string& name, uint64_t step = 0) {
    const Tensor t = Tensor::empty(shape);
    fill_normal(t, RngKey(12, "test", name, step));
    return t;
  }
  // One element, a matrix, chunks with a tail, and a gradient that is off its boundary.
  static Parameters make_parameters(Device device) {
    Parameters parameters;
    for (const auto& [name, shape] :
         std::vector<std::pair<std::string, Shape>>{{"norm.weight", {1}},
                                                    {"token.weight", {17, 15}},
                                                    {"norm.bias", {kUpdateChunk + 7}},
                                                    {"pos_embed", {3, 1021}},
                                                    {"idle", {5}}})
      parameters.push_back({name, Variable(random(shape, name).to(device), true)});
    return parameters;
  }
  static void set_gradients(const Parameters& parameters, uint64_t step) {
    for (const auto& p : parameters) {
      if (p.name == "idle") continue;
      const int64_t n = p.variable.value().numel();
      const Tensor wide = random({n + 1}, "grad." + p.name, step).to(p.variable.value().device());
      p.variable.set_grad(wide.slice(0, p.name == "pos_embed" ? 1 : 0, n + (p.name == "pos_embed"))
                              .view(p.variable.shape()));
    }
  }
  static void expect_near(const Tensor& found, const Tensor& expected, const std::string& what) {
    const std::vector<float> x = found.to_vector<float>(), y = expected.to_vector<float>();
    ASSERT_EQ(x.size(), y.size());
    for (size_t i = 0; i < x.size(); ++i)
      ASSERT_NEAR(x[i], y[i], 1e-6 * (1.0 + std::abs(y[i]))) << what << ", element " << i;
  }
};

TEST_P(DeviceOptimizer, EveryRuleAgreesWithTheCpu) {
  for (const std::string kind : {"adamw", "sgd", "nesterov", "lion", "muon"}) {
    SCOPED_TRACE(kind);
    OptimizerOptions options;
    options.kind = kind == "nesterov" ? "sgd" : kind;
    options.nesterov = kind == "nesterov";
    const Parameters here = make_parameters(device()), there = make_parameters(kCpu);
    const auto mine = make_optimizer(options, here), reference = make_optimizer(options, there);
    for (uint64_t t = 1; t <= 3; ++t) {
      set_gradients(here, t);
      set_gradients(there, t);
      // The clip of step 2 by a number, that of step 3 read where the norm lives.
      const double lr = 0.01 * static_cast<double>(t), most = 20.0;
      reference->step(lr, t == 2 ? 0.3 : t == 3 ? most / global_norm(there) : 1.0);
      if (t == 3)
        mine->step(lr, Clip{.norm = gradient_norm(here), .most = most});
      else
        mine->step(lr, t == 2 ? 0.3 : 1.0);
    }
    for (size_t i = 0; i < here.size(); ++i)
      expect_near(here[i].variable.value(), there[i].variable.value(), here[i].name);
    const NamedTensors state = mine->state(), expected = reference->state();
    for (size_t i = 0; i < state.size(); ++i) {
      EXPECT_EQ(state[i].second.device(), device());
      expect_near(state[i].second, expected[i].second, state[i].first);
    }
  }
}

TEST_P(DeviceOptimizer, AClipThatIsNotReachedChangesNothing) {
  OptimizerOptions options;
  const Parameters a = make_parameters(device()), b = make_parameters(device());
  set_gradients(a, 1);
  set_gradients(b, 1);
  make_optimizer(options, a)->step(0.1, 1.0);
  make_optimizer(options, b)->step(0.1, Clip{.norm = gradient_norm(b), .most = 1e6});
  for (size_t i = 0; i < a.size(); ++i)
    EXPECT_EQ(a[i].variable.value().to_vector<float>(), b[i].variable.value().to_vector<float>());
}

TEST_P(DeviceOptimizer, TheNormIsThatOfTheDefinitionAndTheSameEveryTime) {
  const Parameters parameters = make_parameters(device());
  EXPECT_EQ(global_norm(parameters), 0.0);
  set_gradients(parameters, 1);
  double total = 0.0;
  for (const auto& p : parameters) {
    if (!p.variable.grad().defined()) continue;
    for (const double g : p.variable.grad().to_vector<double>()) total += g * g;
  }
  const double norm = global_norm(parameters);
  EXPECT_NEAR(norm, std::sqrt(total), 1e-7 * std::sqrt(total));
  EXPECT_EQ(global_norm(parameters), norm);
  EXPECT_EQ(gradient_norm(parameters).device(), device());
}

TEST_P(DeviceOptimizer, MomentumAndNormalisation) {
  if (device().is_cpu()) return;  // its optimizer has no table
  const Tensor p = Tensor::empty({1025}, Dtype::f32, device()),
               m = random({1025}, "m").to(device()), g = random({1025}, "g").to(device());
  const std::vector<float> m0 = m.to_vector<float>(), g0 = g.to_vector<float>();
  DeviceTable table;
  FOVEA_GPU_CALL(device(), momentum_step, table({{p, g, m, {}}}), GradientFactor{.value = 0.5f},
                 0.9f, stream_of(device()));
  std::vector<float> m1(1025), direction(1025), unit(1025);
  double squares = 0.0;
  for (size_t i = 0; i < 1025; ++i) {
    m1[i] = 0.9f * m0[i] + 0.5f * g0[i];
    direction[i] = 0.9f * m1[i] + 0.5f * g0[i];
    squares += double{g0[i]} * double{g0[i]};
  }
  expect_near(m, Tensor::from(m1, {1025}), "m");
  expect_near(p, Tensor::from(direction, {1025}), "direction");
  const UpdateTable one = table({{p, g, {}, {}}});
  const Tensor norm = norm_on_device(one, device());
  FOVEA_GPU_CALL(device(), scale_step, one, GradientFactor{.norm = norm.data<float>()},
                 stream_of(device()));
  for (size_t i = 0; i < 1025; ++i) unit[i] = static_cast<float>(g0[i] / std::sqrt(squares));
  expect_near(p, Tensor::from(unit, {1025}), "unit");
}

TEST_P(DeviceOptimizer, AveragesAndSwapsBitForBit) {
  const Parameters here = make_parameters(device()), there = make_parameters(kCpu);
  Ema mine(here, 0.9), reference(there, 0.9);
  for (const Parameters* parameters : {&here, &there})
    for (const auto& p : *parameters) p.variable.value().fill_(1.0);
  for (int i = 0; i < 2; ++i) {
    mine.update();
    reference.update();
  }
  {
    const Ema::Swap swap(mine), other(reference);
    for (size_t i = 0; i < here.size(); ++i)
      expect_near(here[i].variable.value(), there[i].variable.value(), here[i].name);
  }
  for (const auto& p : here)
    EXPECT_EQ(p.variable.value().to_vector<float>(),
              std::vector<float>(static_cast<size_t>(p.variable.value().numel()), 1.0f));
}

TEST_P(DeviceOptimizer, ParametersOnTwoDevicesAreRefused) {
  if (device().is_cpu()) return;  // there is one
  Parameters parameters = make_parameters(device());
  parameters.push_back({"stray", Variable(Tensor::zeros({3}), true)});
  try {
    make_optimizer({}, parameters);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              concat("optimizer: stray is on cpu but norm.weight on ", device()));
  }
}

FOVEA_ON_DEVICES(DeviceOptimizer);

}  // namespace
}  // namespace fovea::train
