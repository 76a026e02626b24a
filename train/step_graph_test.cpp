// SPDX-License-Identifier: Apache-2.0
// Steps as graphs against steps queued kernel by kernel: the same bits.
#include "train/step_graph.h"

#include <cmath>

#include "core/testing/devices.h"
#include "core/warning.h"
#include "train/trainer.h"

namespace fovea::train {
namespace {

using Overrides = std::vector<config::Flag>;

std::vector<Device> devices_with_graphs() {
  std::vector<Device> devices = devices_to_test();
  std::erase_if(devices, [](Device device) { return device.is_cpu(); });
  return devices;
}

// What a trainer's steps say and leave.
struct Trained {
  std::vector<double> numbers;
  Checkpoint state;
};
void train(Trainer& trainer, int steps, Trained& result) {
  for (int i = 0; i < steps; ++i) {
    const Trainer::StepResult step = trainer.step();
    result.numbers.insert(result.numbers.end(), {step.loss, step.grad_norm, step.lr});
  }
  result.state = trainer.save();
}

void expect_same_bits(const Trained& a, const Trained& b) {
  EXPECT_EQ(a.numbers, b.numbers);
  ASSERT_EQ(a.state.tensors.size(), b.state.tensors.size());
  for (size_t i = 0; i < a.state.tensors.size(); ++i)
    EXPECT_EQ(a.state.tensors[i].second.to_vector<float>(),
              b.state.tensors[i].second.to_vector<float>())
        << a.state.tensors[i].first;
}

class StepGraphs : public OnDevices {
 protected:
  // A copy task for a GPT that takes milliseconds.
  static Experiment experiment(const char* graph, const Overrides& overrides) {
    Experiment e;
    Overrides flags{
        {"data.kind", "copy"},          {"data.context", "10"},
        {"data.vocab_size", "7"},       {"model.kind", "gpt"},
        {"model.layers", "1"},          {"model.dim", "8"},
        {"model.context", "10"},        {"model.attention.kind", "softmax_attention"},
        {"model.attention.heads", "2"}, {"schedule.warmup", "3"},
        {"train.batch", "2"},           {"train.steps", "8"},
        {"train.graph", graph},         {"train.device", std::string(name(device().kind))}};
    flags.insert(flags.end(), overrides.begin(), overrides.end());
    config::load_text(e, "", "test", flags);
    return e;
  }
  // Two replays among the steps.
  static void expect_same_steps(const Overrides& overrides) {
    Experiment with = experiment("on", overrides), without = experiment("off", overrides);
    Trainer graph(with), each(without);
    Trained a, b;
    train(graph, 4, a);
    train(each, 4, b);
    EXPECT_TRUE(graph.captured());
    EXPECT_FALSE(each.captured());
    expect_same_bits(a, b);
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, StepGraphs, testing::ValuesIn(devices_with_graphs()),
                         device_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(StepGraphs);

TEST_P(StepGraphs, DrawAndAccumulateLikeStepsWithoutAGraph) {
  expect_same_steps({{"model.dropout", "0.2"},
                     {"model.attention.dropout", "0.1"},
                     {"train.micro_batch", "1"},
                     {"train.clip", "0.05"}});
}
TEST_P(StepGraphs, KnowPositionsAndNorms) {
  expect_same_steps({{"model.positions", "none"},
                     {"model.attention.rope", "half"},
                     {"model.attention.qk_norm", "l2"},
                     {"model.attention.alibi", "true"},
                     {"model.norm", "rms"},
                     {"train.clip", "0"},
                     {"train.label_smoothing", "0.1"},
                     {"optimizer.kind", "sgd"}});
}
TEST_P(StepGraphs, TrainInBf16) {
  expect_same_steps({{"train.precision", "bf16"}, {"model.attention.dropout", "0.1"}});
}
TEST_P(StepGraphs, TakeMuon) {
  expect_same_steps(
      {{"optimizer.kind", "muon"}, {"train.ema", "0.9"}, {"model.tied_head", "false"}});
}
TEST_P(StepGraphs, TakeLion) {
  expect_same_steps({{"optimizer.kind", "lion"}, {"train.z_loss", "1e-3"}});
}

TEST_P(StepGraphs, CheckpointsAndEvaluationsChangeNothing) {
  const Overrides variant{{"model.dropout", "0.2"}, {"train.ema", "0.5"}};
  Experiment with = experiment("on", variant), without = experiment("off", variant);
  Trainer graph(with), each(without);
  Trained a, b;
  train(graph, 3, a);
  train(each, 3, b);
  graph.evaluate(1);
  const Checkpoint of_graph = graph.save(), of_each = each.save();
  // A captured trainer goes on from a state that it is given.
  graph.load(of_each);
  Trainer resumed(without);
  resumed.load(of_graph);
  Trained c, d, e;
  train(graph, 2, c);
  train(each, 2, d);
  train(resumed, 2, e);
  expect_same_bits(c, d);
  expect_same_bits(e, d);
}

TEST_P(StepGraphs, ANanEndsTheRunByName) {
  Experiment e = experiment("on", {});
  Trainer trainer(e);
  for (int i = 0; i < 4; ++i) trainer.step();
  trainer.model().module().parameters().back().variable.value().fill_(std::nan(""));
  try {
    trainer.step();
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("first bad tensor: gradient of"), std::string::npos)
        << error.what();
  }
}

// ---- images -------------------------------------------------------------------------------------

data::Batch images(int64_t samples, int seed, bool soft) {
  data::Batch batch;
  batch.inputs = Tensor::empty({samples, 1, 4, 4});
  fill_normal(batch.inputs, RngKey(7, "test", "image", static_cast<uint64_t>(seed)));
  if (soft) {
    batch.soft_targets = Tensor::full({samples, 3}, 0.25);
    for (int64_t i = 0; i < samples; ++i)
      batch.soft_targets.data<float>()[3 * i + (i + seed) % 3] = 0.5f;
  } else {
    batch.targets = Tensor::empty({samples}, Dtype::i64);
    for (int64_t i = 0; i < samples; ++i) batch.targets.data<int64_t>()[i] = (i + seed) % 3;
  }
  return batch;
}

// A ViT and plain descent, by hand.
struct Images {
  Images(StepGraph::Use use, Device device_) : device(device_) {
    config::load_text(experiment, "", "test",
                      {{"model.kind", "vit"},
                       {"model.layers", "1"},
                       {"model.dim", "8"},
                       {"model.patch", "2"},
                       {"model.attention.kind", "softmax_attention"},
                       {"model.attention.heads", "2"},
                       {"optimizer.kind", "sgd"}});
    data::Description description;
    description.is_tokens = false;
    description.channels = 1;
    description.height = description.width = 4;
    description.classes = 3;
    model = make_model(experiment, description);
    model->initialise(1);
    model->module().to(device);
    parameters = model->module().parameters();
    optimizer = make_optimizer(experiment.optimizer, parameters);
    graph = std::make_unique<StepGraph>(use, device, parameters,
                                        [this](const data::Batch& batch) { return queue(batch); });
  }
  StepWork queue(const data::Batch& batch) {
    model->module().zero_grad();
    const Variable loss =
        model->losses({batch.inputs.to(device), batch.targets, batch.soft_targets.to(device)},
                      experiment.train, {}, nullptr)[0];
    loss.backward();
    StepWork work{{loss.value()}, gradient_norm(parameters)};
    if (spoil) spoil();
    optimizer->update({});
    return work;
  }
  std::vector<double> step(const data::Batch& batch) {
    optimizer->advance(0.1);
    const StepWork work = graph->run(batch);
    return {work.losses[0].item(), work.norm.item()};
  }

  Device device;
  Experiment experiment;
  std::unique_ptr<Model> model;
  Parameters parameters;
  std::unique_ptr<Optimizer> optimizer;
  std::unique_ptr<StepGraph> graph;
  std::function<void()> spoil;
};

TEST_P(StepGraphs, TakeImagesAndSoftTargets) {
  for (const bool soft : {false, true}) {
    Images graph(StepGraph::Use::on, device()), each(StepGraph::Use::off, device());
    for (int i = 0; i < 5; ++i)
      EXPECT_EQ(graph.step(images(2, i, soft)), each.step(images(2, i, soft)));
    EXPECT_TRUE(graph.graph->captured());
  }
}

// ---- what cannot be a graph ---------------------------------------------------------------------

class Warned {
 public:
  Warned()
      : before_(set_warning_handler([this](const std::string& line) { lines.push_back(line); })) {}
  ~Warned() { set_warning_handler(before_); }
  std::vector<std::string> lines;

 private:
  WarningHandler before_;
};

// The error of a step that must be a graph.
std::string refused(Images& images_, const data::Batch& batch) {
  try {
    images_.step(batch);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST_P(StepGraphs, ABatchOfAnotherShapeEndsThem) {
  const Warned warned;
  Images graph(StepGraph::Use::automatic, device()), each(StepGraph::Use::off, device()),
      strict(StepGraph::Use::on, device());
  for (int i = 0; i < 6; ++i) {
    const data::Batch batch = images(i == 3 ? 1 : 2, i, false);
    EXPECT_EQ(graph.step(batch), each.step(batch));
    EXPECT_EQ(graph.graph->captured(), i == 2);
    if (i < 3) strict.step(batch);
    if (i == 3) {
      EXPECT_EQ(refused(strict, batch),
                "train.graph is on, but the step cannot be a graph: a batch of [1, 1, 4, 4] "
                "follows batches of [2, 1, 4, 4]");
    }
  }
  EXPECT_EQ(warned.lines, (std::vector<std::string>{
                              "train.graph: steps run without a graph: a batch of [1, 1, 4, 4] "
                              "follows batches of [2, 1, 4, 4]"}));
}

TEST_P(StepGraphs, AStepThatWaitsForTheDeviceIsNone) {
  const Warned warned;
  Images graph(StepGraph::Use::automatic, device()), each(StepGraph::Use::off, device()),
      strict(StepGraph::Use::on, device());
  for (Images* all : {&graph, &strict})
    all->spoil = [all] { all->parameters[0].variable.grad().to_vector<float>(); };
  for (int i = 0; i < 4; ++i) {
    const data::Batch batch = images(2, i, false);
    EXPECT_EQ(graph.step(batch), each.step(batch));
    if (i < 2) strict.step(batch);
    if (i == 2) {
      EXPECT_NE(refused(strict, batch)
                    .find("train.graph is on, but the step cannot be a graph: "
                          "graph: a copy to the host in a captured region"),
                std::string::npos);
    }
  }
  ASSERT_EQ(warned.lines.size(), 1u);
  EXPECT_NE(warned.lines[0].find("a copy to the host in a captured region"), std::string::npos);
}

TEST_P(StepGraphs, ALabelThatIsNoClassIsFoundBeforeTheWeightsMove) {
  Images graph(StepGraph::Use::on, device());
  for (int i = 0; i < 3; ++i) graph.step(images(2, i, false));
  const std::vector<float> before = graph.parameters[0].variable.value().to_vector<float>();
  data::Batch bad = images(2, 3, false);
  bad.targets.data<int64_t>()[1] = 3;
  EXPECT_EQ(refused(graph, bad), "cross_entropy: row 1 has label 3, outside the 3 classes");
  EXPECT_EQ(graph.parameters[0].variable.value().to_vector<float>(), before);
}

TEST_P(StepGraphs, DocumentsAreEachBatchsOwn) {
  const Warned warned;
  Images graph(StepGraph::Use::automatic, device()), strict(StepGraph::Use::on, device());
  data::Batch batch = images(2, 0, false);
  batch.documents = Tensor::zeros({2, 4}, Dtype::i32);
  for (int i = 0; i < 3; ++i) graph.step(batch);
  EXPECT_FALSE(graph.graph->captured());
  const std::string why = "the step cannot be a graph: masks of documents are each batch's own";
  EXPECT_EQ(refused(strict, batch), "train.graph is on, but " + why);
  EXPECT_EQ(warned.lines.size(), 1u);
}

TEST(StepGraph, AutoIsForCardsAndTheCpuHasNone) {
  EXPECT_EQ(StepGraph::parse("auto", {Device::Kind::cuda, 0}), StepGraph::Use::automatic);
  EXPECT_EQ(StepGraph::parse("auto", {Device::Kind::interpreted, 0}), StepGraph::Use::off);
  EXPECT_EQ(StepGraph::parse("auto", kCpu), StepGraph::Use::off);
  EXPECT_EQ(StepGraph::parse("off", {Device::Kind::cuda, 0}), StepGraph::Use::off);
  EXPECT_EQ(StepGraph::parse("on", kCpu), StepGraph::Use::on);
  EXPECT_THROW(StepGraph(StepGraph::Use::on, kCpu, {}, nullptr), Error);
}

}  // namespace
}  // namespace fovea::train
