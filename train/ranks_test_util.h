// SPDX-License-Identifier: Apache-2.0
#pragma once
// What tests of training on several ranks share: a small experiment, and what a run of it gives.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "core/testing/error_of.h"
#include "distributed/threads.h"
#include "train/trainer.h"

namespace fovea::train {

using distributed::Communicator;
using distributed::run_ranks;
using Flags = std::vector<config::Flag>;

// Recall: few positions of a sequence are scored. Every choice that could depend on ranks is on.
inline void load(Experiment& e, const Flags& overrides) {
  Flags flags;
  if (overrides.empty() || overrides[0].key != "data.kind")
    flags = {{"data.kind", "recall"}, {"data.context", "24"}, {"data.vocab_size", "17"},
             {"data.pairs", "3"},     {"data.queries", "4"},  {"data.val_samples", "11"}};
  Flags rest{{"model.kind", "gpt"},
             {"model.layers", "2"},
             {"model.dim", "16"},
             {"model.context", "24"},
             {"model.dropout", "0.1"},
             {"model.attention.kind", "softmax_attention"},
             {"model.attention.heads", "2"},
             {"model.attention.dropout", "0.1"},
             {"schedule.warmup", "3"},
             {"optimizer.lr", "3e-3"},
             {"train.batch", "12"},
             {"train.micro_batch", "2"},
             {"train.steps", "20"},
             {"train.clip", "0.5"},
             {"train.ema", "0.9"},
             {"mesh.bucket_bytes", "4096"}};
  const auto says = [](const char* key) {
    return [key](const config::Flag& flag) { return flag.key.starts_with(key); };
  };
  if (std::any_of(overrides.begin(), overrides.end(), says("model.attention.kind")))
    std::erase_if(rest, says("model.attention."));
  if (std::any_of(overrides.begin(), overrides.end(), says("model.kind"))) {
    std::erase_if(rest, says("model.kind"));
    std::erase_if(rest, says("model.context"));
  }
  flags.insert(flags.end(), rest.begin(), rest.end());
  flags.insert(flags.end(), overrides.begin(), overrides.end());
  config::load_text(e, "", "test", flags);
}

struct Trained {
  std::vector<double> losses, norms;
  double held_out = 0.0;
  std::vector<std::pair<std::string, std::vector<float>>> state;  // by name
  std::vector<Tensor> tensors;
  Checkpoint checkpoint;
};

// Steps up to `until`, from a checkpoint or from the start, as rank 0 sees it.
inline Trained train(int ranks, const std::function<void(Experiment&)>& configure, int64_t until,
                     const Checkpoint* from = nullptr, const nn::MixerFactory& mixer = {}) {
  const ThreadShare share(1);  // of the one rank
  Trained result;
  std::mutex mutex;
  std::vector<Checkpoint::Part> parts;
  run_ranks(ranks, [&](const Communicator& job) {
    Experiment e;
    configure(e);
    Trainer trainer(e, job, mixer);
    if (from != nullptr) trainer.load(*from);
    Trained mine;
    while (trainer.completed_steps() < until) {
      const Trainer::StepResult step = trainer.step();
      mine.losses.push_back(step.loss);
      mine.norms.push_back(step.grad_norm);
    }
    const EvalSums sums = trainer.evaluate(0);
    mine.held_out = sums.loss / sums.scored;
    mine.checkpoint = trainer.save();
    for (auto& [name, tensor] : mine.checkpoint.tensors) tensor = tensor.clone();
    for (Checkpoint::Part& part : mine.checkpoint.parts)
      part.read = [values = part.read().clone()] { return values; };
    const std::lock_guard lock(mutex);
    parts.insert(parts.end(), mine.checkpoint.parts.begin(), mine.checkpoint.parts.end());
    if (job.rank() == 0) result = mine;
  });
  result.checkpoint.parts = parts;
  for (const std::string& name : result.checkpoint.names())
    result.state.emplace_back(name, result.checkpoint.tensor(name).to_vector<float>());
  std::sort(result.state.begin(), result.state.end());
  return result;
}

inline Trained train(int ranks, const Flags& overrides, int64_t until = 20,
                     const Checkpoint* from = nullptr, const nn::MixerFactory& mixer = {}) {
  return train(
      ranks, [&](Experiment& e) { load(e, overrides); }, until, from, mixer);
}

inline void expect_near(const std::vector<double>& found, const std::vector<double>& expected,
                        double bound) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i)
    EXPECT_NEAR(found[i], expected[i], bound * std::max(1.0, std::abs(expected[i]))) << i;
}

inline constexpr double kRounding = 1e-5;  // f32, 20 steps

}  // namespace fovea::train
