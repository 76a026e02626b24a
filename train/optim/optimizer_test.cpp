// SPDX-License-Identifier: Apache-2.0
#include "train/optim/optimizer.h"

#include <cmath>
#include <limits>

#include "core/ops/matmul.h"
#include "core/parallel.h"
#include "core/testing/devices.h"

namespace fovea::train {
namespace {

Tensor random(const Shape& shape, const std::string& name, uint64_t step = 0) {
  const Tensor t = Tensor::empty(shape);
  fill_normal(t, RngKey(11, "test", name, step));
  return t;
}

// Parameters of awkward sizes, two of them vectors.
Parameters make_parameters(Device device = kCpu) {
  Parameters parameters;
  for (const auto& [name, shape] :
       std::vector<std::pair<std::string, Shape>>{{"token.weight", {5, 3}},
                                                  {"blocks.0.up.weight", {17, 15}},
                                                  {"norm.weight", {1}},
                                                  {"big", {70001}}}) {
    parameters.push_back({name, Variable(random(shape, name).to(device), true)});
  }
  return parameters;
}

void set_gradients(const Parameters& parameters, uint64_t step) {
  for (const auto& p : parameters)
    p.variable.set_grad(
        random(p.variable.shape(), "grad." + p.name, step).to(p.variable.value().device()));
}

bool decays(const Parameters& parameters, size_t i) {
  return parameters[i].variable.value().rank() >= 2;
}

// Each rule from its paper, in double, element by element.
struct Definition {
  std::vector<std::vector<double>> p, m, v;
  explicit Definition(const Parameters& parameters) {
    for (const auto& parameter : parameters) {
      p.push_back(parameter.variable.value().to_vector<double>());
      m.emplace_back(p.back().size(), 0.0);
      v.emplace_back(p.back().size(), 0.0);
    }
  }
  void step(const Parameters& parameters, const OptimizerOptions& o, double lr, double factor,
            int t) {
    for (size_t i = 0; i < p.size(); ++i) {
      const std::vector<double> gradients = parameters[i].variable.grad().to_vector<double>();
      for (size_t j = 0; j < p[i].size(); ++j) {
        const double g = gradients[j] * factor;
        double &x = p[i][j], &a = m[i][j], &b = v[i][j];
        double update = 0.0;
        if (o.kind == "adamw") {
          a = o.beta1 * a + (1 - o.beta1) * g;
          b = o.beta2 * b + (1 - o.beta2) * g * g;
          update =
              a / (1 - std::pow(o.beta1, t)) / (std::sqrt(b / (1 - std::pow(o.beta2, t))) + o.eps);
        } else if (o.kind == "sgd") {
          a = o.momentum * a + g;
          update = o.nesterov ? g + o.momentum * a : a;
        } else {
          const double c = o.beta1 * a + (1 - o.beta1) * g;
          update = (c > 0) - (c < 0);
          a = o.beta2 * a + (1 - o.beta2) * g;
        }
        x = x - lr * update - (decays(parameters, i) ? lr * o.weight_decay * x : 0.0);
      }
    }
  }
};

class Optimizers : public OnDevices {};
FOVEA_ON_DEVICES(Optimizers);

TEST_P(Optimizers, RulesFollowTheirDefinition) {
  for (const std::string kind : {"adamw", "sgd", "nesterov", "lion"}) {
    SCOPED_TRACE(kind);
    OptimizerOptions options;
    options.kind = kind == "nesterov" ? "sgd" : kind;
    options.nesterov = kind == "nesterov";
    const Parameters parameters = make_parameters(device());
    const auto optimizer = make_optimizer(options, parameters);
    Definition definition(parameters);
    for (int t = 1; t <= 4; ++t) {
      set_gradients(parameters, static_cast<uint64_t>(t));
      const double lr = 0.01 * t, factor = t == 2 ? 0.3 : 1.0;
      definition.step(parameters, options, lr, factor, t);
      optimizer->step(lr, factor);
    }
    for (size_t i = 0; i < parameters.size(); ++i) {
      const std::vector<double> found = parameters[i].variable.value().to_vector<double>();
      for (size_t j = 0; j < found.size(); ++j)
        ASSERT_NEAR(found[j], definition.p[i][j], 2e-6 * (1 + std::abs(definition.p[i][j])))
            << i << ' ' << j;
    }
  }
}

TEST(Optimizer, MuonMovesMatricesByNearlyOrthogonalSteps) {
  OptimizerOptions options;
  options.kind = "muon";
  options.lr = 0.02;
  options.weight_decay = 0.0;
  const Parameters parameters = make_parameters();
  const auto optimizer = make_optimizer(options, parameters);
  set_gradients(parameters, 1);
  const Tensor before = parameters[1].variable.value().clone();
  const std::vector<float> vector_before = parameters[3].variable.value().to_vector<float>();
  optimizer->step(0.02, 1.0);
  const std::vector<double> b = before.to_vector<double>(),
                            a = parameters[1].variable.value().to_vector<double>();
  // 17 x 15: the columns of the step, over lr sqrt(17 / 15), have a Gram matrix near the identity
  // (singular values in 0.7 to 1.2).
  const double unit = 0.02 * std::sqrt(17.0 / 15.0);
  double trace = 0.0;
  for (size_t i = 0; i < a.size(); ++i) trace += std::pow((b[i] - a[i]) / unit, 2);
  EXPECT_GT(trace / 15, 0.6);
  EXPECT_LT(trace / 15, 1.4);
  EXPECT_NEAR(std::abs(parameters[3].variable.value().to_vector<double>()[0] - vector_before[0]),
              options.adam_lr, 1e-5);  // Adam's first step
}

// What ZeRO-1 may not cut: Muon's hidden matrices, at the operations of their products.
TEST(Optimizer, OnlyMuonsMatricesMoveAsAWhole) {
  OptimizerOptions options;
  options.kind = "muon";
  options.newton_schulz = 3;
  // X X^T [2, 5] x [5, 2], A A [2, 2] x [2, 2], B X [2, 2] x [2, 5]
  EXPECT_EQ(whole_cost(options, "blocks.0.mlp.up.weight", {2, 5}), 3 * 2 * (20 + 8 + 20));
  EXPECT_EQ(whole_cost(options, "blocks.0.mlp.down.weight", {5, 2}), 3 * 2 * (20 + 8 + 20));
  for (const auto& [name, shape] :
       std::vector<std::pair<std::string, Shape>>{{"token.weight", {5, 2}},
                                                  {"position.weight", {5, 2}},
                                                  {"head.weight", {5, 2}},
                                                  {"norm.weight", {5}},
                                                  {"patch.weight", {4, 3, 2, 2}}})
    EXPECT_EQ(whole_cost(options, name, shape), 0) << name;
  for (const char* kind : {"adamw", "sgd", "lion"}) {
    options.kind = kind;
    EXPECT_EQ(whole_cost(options, "blocks.0.mlp.up.weight", {2, 5}), 0);
  }
}

TEST(Optimizer, AStateMovedToAFreshOneContinuesBitForBitOnAnyNumberOfThreads) {
  for (const std::string kind : {"adamw", "sgd", "lion", "muon"}) {
    OptimizerOptions options;
    options.kind = kind;
    const Parameters whole = make_parameters(), parts = make_parameters();
    const auto a = make_optimizer(options, whole);
    auto b = make_optimizer(options, parts);
    const int threads = num_threads();
    for (uint64_t t = 1; t <= 4; ++t) {
      set_gradients(whole, t);
      set_gradients(parts, t);
      set_num_threads(1);
      a->step(0.01, 0.5);
      set_num_threads(2);
      if (t == 3) {
        auto fresh = make_optimizer(options, parts);
        const NamedTensors from = b->state(), to = fresh->state();
        ASSERT_EQ(from.size(), to.size());
        for (size_t i = 0; i < from.size(); ++i) to[i].second.copy_(from[i].second);
        fresh->set_steps(b->steps());
        b = std::move(fresh);
      }
      b->step(0.01, 0.5);
    }
    set_num_threads(threads);
    for (size_t i = 0; i < whole.size(); ++i)
      EXPECT_EQ(whole[i].variable.value().to_vector<float>(),
                parts[i].variable.value().to_vector<float>())
          << kind;
  }
}

TEST_P(Optimizers, GlobalNormIsThatOfAllGradientsTogether) {
  const Parameters parameters = make_parameters(device());
  set_gradients(parameters, 1);
  double total = 0.0;
  for (const auto& p : parameters) {
    for (const double g : p.variable.grad().to_vector<double>()) total += g * g;
  }
  EXPECT_NEAR(global_norm(parameters), std::sqrt(total), 1e-6 * std::sqrt(total));
}

TEST_P(Optimizers, TheFirstBadElementIsNamed) {
  const Parameters parameters = make_parameters(device());
  set_gradients(parameters, 1);
  EXPECT_FALSE(first_nonfinite(parameters).has_value());
  parameters[3]
      .variable.value()
      .slice(0, 69999, 70000)
      .fill_(std::numeric_limits<double>::infinity());
  EXPECT_EQ(first_nonfinite(parameters), "value of big [70001], element 69999: inf");
  parameters[1].variable.grad().slice(0, 1, 2).slice(1, 1, 2).fill_(
      std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(first_nonfinite(parameters),
            "gradient of blocks.0.up.weight [17, 15], element 16: nan");
}

TEST_P(Optimizers, EmaAveragesAndSwapsBitForBit) {
  const Parameters parameters = make_parameters(device());
  Ema ema(parameters, 0.9);
  const std::vector<float> start = parameters[1].variable.value().to_vector<float>();
  parameters[1].variable.value().fill_(1.0);
  ema.update();
  ema.update();
  {
    const Ema::Swap swap(ema);
    const std::vector<float> averaged = parameters[1].variable.value().to_vector<float>();
    for (size_t i = 0; i < start.size(); ++i)
      EXPECT_NEAR(averaged[i], 0.81 * start[i] + 0.19, 1e-6);
  }
  EXPECT_EQ(parameters[1].variable.value().to_vector<float>(),
            std::vector<float>(start.size(), 1.0f));
}

TEST(Schedule, CornersOfEveryShape) {
  ScheduleOptions s;
  s.warmup = 10;
  EXPECT_DOUBLE_EQ(learning_rate(1.0, s, 0, 110), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(1.0, s, 9, 110), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(1.0, s, 10, 110), 1.0);
  EXPECT_NEAR(learning_rate(1.0, s, 109, 110), 0.1, 1e-12);
  EXPECT_NEAR(learning_rate(1.0, s, 500, 110), 0.1, 1e-12);
  s.kind = "linear";
  s.final_fraction = 0.0;
  EXPECT_NEAR(learning_rate(2.0, s, 59, 109), 1.0, 1e-12);
  s.kind = "constant";
  EXPECT_DOUBLE_EQ(learning_rate(2.0, s, 108, 109), 2.0);
  s.kind = "wsd";
  EXPECT_DOUBLE_EQ(learning_rate(2.0, s, 79, 100), 2.0);
  EXPECT_NEAR(learning_rate(2.0, s, 99, 100), 0.0, 1e-12);
  EXPECT_LT(learning_rate(2.0, s, 90, 100), 2.0);
}

}  // namespace
}  // namespace fovea::train
