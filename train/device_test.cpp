// SPDX-License-Identifier: Apache-2.0
// Whole models and the trainer on every device, against the cpu.
#include <cmath>

#include "core/testing/devices.h"
#include "nn/loss.h"
#include "train/sampler.h"
#include "train/trainer.h"

namespace fovea::train {
namespace {

using Overrides = std::vector<config::Flag>;

// A copy task for a GPT that takes milliseconds.
Experiment experiment(const Overrides& overrides, Device device) {
  Experiment e;
  Overrides flags{{"data.kind", "copy"},          {"data.context", "18"},
                  {"data.vocab_size", "11"},      {"model.kind", "gpt"},
                  {"model.layers", "1"},          {"model.dim", "16"},
                  {"model.context", "20"},        {"model.attention.kind", "softmax_attention"},
                  {"model.attention.heads", "2"}, {"train.batch", "3"},
                  {"train.steps", "3"},           {"train.device", std::string(name(device.kind))}};
  flags.insert(flags.end(), overrides.begin(), overrides.end());
  config::load_text(e, "", "test", flags);
  return e;
}

struct Trained {
  std::vector<double> losses, norms;
  Checkpoint state;
};
Trained trained(const Overrides& overrides, Device device, int steps) {
  Experiment e = experiment(overrides, device);
  Trainer trainer(e);
  Trained result;
  for (int i = 0; i < steps; ++i) {
    const Trainer::StepResult step = trainer.step();
    result.losses.push_back(step.loss);
    result.norms.push_back(step.grad_norm);
  }
  result.state = trainer.save();
  return result;
}

double distance(const Tensor& a, const Tensor& b) {
  const std::vector<float> x = a.to_vector<float>(), y = b.to_vector<float>();
  double difference = 0.0, size = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += std::pow(double{x[i]} - double{y[i]}, 2);
    size += double{y[i]} * double{y[i]};
  }
  return std::sqrt(size > 0.0 ? difference / size : difference);
}

class Training : public OnDevices {};
FOVEA_ON_DEVICES(Training);

TEST_P(Training, FollowsTheCpuWhateverTheModelIsMadeOf) {
  const std::vector<Overrides> models{
      {},
      {{"model.positions", "sinusoidal"},
       {"model.dropout", "0.2"},
       {"model.attention.dropout", "0.1"}},
      {{"model.positions", "none"},
       {"model.attention.rope", "half"},
       {"model.attention.kv_heads", "1"},
       {"model.norm", "rms"},
       {"model.mlp", "swiglu"},
       {"model.tied_head", "false"}},
      {{"model.attention.qk_norm", "l2"}, {"model.attention.alibi", "true"}},
      {{"model.attention.qk_norm", "rms"},
       {"model.attention.window", "5"},
       {"train.micro_batch", "1"}},
      {{"optimizer.kind", "muon"}, {"train.ema", "0.9"}},
      {{"optimizer.kind", "sgd"}, {"train.label_smoothing", "0.1"}, {"train.z_loss", "1e-3"}},
  };
  for (const Overrides& model : models) {
    SCOPED_TRACE(model.empty() ? "plain" : model[0].key + "=" + model[0].value);
    const Trained here = trained(model, device(), 2), reference = trained(model, kCpu, 2);
    for (size_t i = 0; i < here.losses.size(); ++i) {
      EXPECT_NEAR(here.losses[i], reference.losses[i], 2e-5);
      EXPECT_NEAR(here.norms[i], reference.norms[i], 1e-3 * reference.norms[i]);
    }
    ASSERT_EQ(here.state.tensors.size(), reference.state.tensors.size());
    for (size_t i = 0; i < here.state.tensors.size(); ++i) {
      const auto& [name, tensor] = here.state.tensors[i];
      if (!name.starts_with("model.")) continue;
      EXPECT_LT(distance(tensor, reference.state.tensors[i].second), 2e-3) << name;
    }
  }
}

TEST_P(Training, Bf16FollowsTheCpu) {
  const Overrides bf16{{"train.precision", "bf16"}};
  const Trained here = trained(bf16, device(), 2), reference = trained(bf16, kCpu, 2);
  for (size_t i = 0; i < here.losses.size(); ++i)
    EXPECT_NEAR(here.losses[i], reference.losses[i], 2e-2);
}

// train.tf32 rounds operands of f32 products to 2^-11, on a GPU device alone; in graphs too.
TEST_P(Training, Tf32FollowsTheCpu) {
  const Trained exact = trained({}, kCpu, 3), f32 = trained({}, device(), 3),
                tf32 = trained({{"train.tf32", "true"}}, device(), 3);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_NEAR(tf32.losses[i], exact.losses[i], 2e-3);
    EXPECT_NEAR(tf32.norms[i], exact.norms[i], 1e-2 * exact.norms[i]);
  }
  if (device().is_cpu()) {
    EXPECT_EQ(tf32.losses, f32.losses);
  }
  if (device().kind != Device::Kind::interpreted) return;
  EXPECT_NE(tf32.losses, f32.losses);
  EXPECT_EQ(trained({{"train.tf32", "true"}, {"train.graph", "on"}}, device(), 3).losses,
            tf32.losses);
}

// Whose passes share copies of the weights, which the next step must not see: in three steps the
// weights have come far enough for it to show.
TEST_P(Training, MicroBatchesInBf16SeeTheWeightsOfTheirStep) {
  const auto with = [&](Overrides more) {
    for (const config::Flag& flag : Overrides{
             {"train.precision", "bf16"}, {"optimizer.lr", "0.05"}, {"schedule.kind", "constant"}})
      more.push_back(flag);
    return trained(more, device(), 4).losses;
  };
  const std::vector<double> whole = with({});
  EXPECT_GT(std::abs(whole[3] - whole[0]), 0.1);
  Overrides everything{
      {"train.micro_batch", "1"}, {"model.recompute", "true"}, {"train.ema", "0.9"}};
  if (!device().is_cpu()) everything.emplace_back("train.graph", "on");
  for (const Overrides& o : {Overrides{{"train.micro_batch", "1"}}, everything}) {
    const std::vector<double> losses = with(o);
    for (size_t i = 0; i < losses.size(); ++i) EXPECT_NEAR(losses[i], whole[i], 0.02) << i;
  }
}

TEST_P(Training, AgainGivesTheSameBits) {
  const Trained once = trained({{"train.precision", "bf16"}}, device(), 2),
                again = trained({{"train.precision", "bf16"}}, device(), 2);
  EXPECT_EQ(once.losses, again.losses);
  for (size_t i = 0; i < once.state.tensors.size(); ++i)
    EXPECT_EQ(once.state.tensors[i].second.to_vector<float>(),
              again.state.tensors[i].second.to_vector<float>())
        << once.state.tensors[i].first;
}

TEST_P(Training, ACheckpointMovesBetweenDevices) {
  Experiment there = experiment({}, kCpu), here = experiment({}, device());
  Trainer source(there);
  source.step();
  Trainer target(here);
  target.load(source.save());
  EXPECT_NEAR(target.step().loss, source.step().loss, 2e-5);
  const EvalSums a = target.evaluate(5), b = source.evaluate(5);
  EXPECT_NEAR(a.loss, b.loss, 1e-4 * b.loss);
  EXPECT_EQ(a.scored, b.scored);
}

TEST_P(Training, DecodingFollowsTheCpu) {
  Experiment there = experiment({{"model.attention.window", "6"}}, kCpu),
             here = experiment({{"model.attention.window", "6"}}, device());
  Trainer source(there), target(here);
  SamplerOptions greedy;
  greedy.temperature = 0.0;
  const auto written = [&](Trainer& trainer) {
    std::vector<int64_t> tokens;
    trainer.model().module().train(false);
    generate(*trainer.model().gpt(), {1, 2, 3}, 25, greedy, [&](int64_t token) {
      tokens.push_back(token);
      return true;
    });
    return tokens;
  };
  EXPECT_EQ(written(target), written(source));
}

TEST_P(Training, ANanEndsTheRunByName) {
  Experiment e = experiment({}, device());
  Trainer trainer(e);
  const auto parameters = trainer.model().module().parameters();
  parameters.back().variable.value().fill_(std::nan(""));
  try {
    trainer.step();
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("first bad tensor: "), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace fovea::train
