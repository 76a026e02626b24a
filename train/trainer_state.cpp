// SPDX-License-Identifier: Apache-2.0
// What of a Trainer goes into a checkpoint, and comes out of it.
#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <random>

#include "distributed/agreement.h"
#include "train/trainer.h"

namespace fovea::train {
namespace {

NamedTensors under(const std::string& prefix, const NamedTensors& tensors) {
  NamedTensors out;
  for (const auto& [name, tensor] : tensors) out.emplace_back(prefix + name, tensor);
  return out;
}

// Of a state's name, "<state>.<parameter>".
std::string parameter_of(const std::string& name) { return name.substr(name.find('.') + 1); }

std::string exact(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

}  // namespace

Checkpoint Trainer::save() const {
  if (parallel_) parallel_->check_weights();  // a rank that went astray spoils no checkpoint
  Checkpoint checkpoint;
  // name is "<state>.<parameter>"
  const auto add = [&](const std::string& prefix, const NamedTensors& state) {
    for (const auto& [name, tensor] : state) {
      if (!sharded()) {
        checkpoint.tensors.emplace_back(prefix + name, tensor);
        continue;
      }
      const auto [whole, from] = parallel_->place(parameter_of(name));
      const Tensor flat = tensor.view({tensor.numel()});
      checkpoint.parts.push_back(
          {prefix + name, whole, from, flat.numel(), [flat] { return flat; }});
    }
  };
  for (const nn::NamedParameter& p : parameters_)
    checkpoint.tensors.emplace_back("model." + p.name, p.variable.value());
  for (const nn::NamedBuffer& b : model_->module().buffers())
    checkpoint.tensors.emplace_back("model." + b.name, *b.tensor);
  add("optimizer.", optimizer_->state());
  if (ema_) add("", under("ema.", ema_->state()));
  checkpoint.attributes = {{"config", config::resolved_toml(experiment_)},
                           {"optimizer", experiment_.optimizer.kind},
                           {"step", std::to_string(step_)},
                           {"samples", std::to_string(loader_->position())},
                           {"seconds", exact(seconds_)}};
  if (best_) checkpoint.attributes["best"] = exact(*best_);
  return checkpoint;
}

void Trainer::save(const std::filesystem::path& path) const {
  Checkpoint checkpoint = save();
  if (sharded()) {
    // A name that no other save has: parts of an older one stay whole until this one is.
    const Tensor number = Tensor::from(std::vector<int64_t>{std::random_device()()}, {1});
    ranks().broadcast(number, 0).wait();
    char save[20];
    std::snprintf(save, sizeof save, "%08" PRIx64,
                  static_cast<uint64_t>(number.data<int64_t>()[0]));
    checkpoint.attributes["save"] = save;
    checkpoint.attributes["parts"] = std::to_string(ranks().size());
    write_part(path, checkpoint, ranks().rank(), ranks().size());
    ranks().barrier();
  }
  if (root()) write_checkpoint(path, checkpoint);
}

void Trainer::load(const Checkpoint& checkpoint) {
  // Optimizers share names for their states, but not what they keep in them.
  const auto kind = checkpoint.attributes.find("optimizer");
  FOVEA_CHECK(kind == checkpoint.attributes.end() || kind->second == experiment_.optimizer.kind,
              "checkpoint ", checkpoint.source, ": holds the state of optimizer ", kind->second,
              ", but the config says ", experiment_.optimizer.kind);
  for (const nn::NamedParameter& p : parameters_)
    checkpoint.restore("model." + p.name, p.variable.value());
  for (const nn::NamedBuffer& b : model_->module().buffers())
    checkpoint.restore("model." + b.name, *b.tensor);
  const auto restore = [&](const std::string& prefix, const std::string& name,
                           const Tensor& target) {
    if (!parallel_) return checkpoint.restore(prefix + name, target);
    const auto [whole, from] = parallel_->place(parameter_of(name));
    checkpoint.restore(prefix + name, target, whole, from);
  };
  for (const auto& [name, tensor] : optimizer_->state()) restore("optimizer.", name, tensor);
  if (ema_) {
    for (const auto& [name, tensor] : under("ema.", ema_->state())) restore("", name, tensor);
  }
  step_ = checkpoint.integer("step");
  distributed::check_agree(ranks(), "checkpoint", concat("step ", step_));
  optimizer_->set_steps(step_);
  loader_->seek(checkpoint.integer("samples"));
  seconds_ = checkpoint.number("seconds");
  if (checkpoint.attributes.contains("best")) best_ = checkpoint.number("best");
}

void Trainer::load_weights(const Checkpoint& checkpoint) {
  const std::string from = ema_ ? "ema." : "model.";
  for (const nn::NamedParameter& p : parameters_)
    checkpoint.restore(from + p.name, p.variable.value());
  for (const nn::NamedBuffer& b : model_->module().buffers())
    checkpoint.restore("model." + b.name, *b.tensor);
  ema_.reset();
  step_ = checkpoint.integer("step");
}

// Rank 0's folder as every rank sees it that writes parts of checkpoints; absent where none does.
std::optional<RunFolder> Trainer::shared_folder(const RunFolder* folder) const {
  if (!sharded()) return {};
  const std::string path = distributed::broadcast_text(
      ranks(), folder != nullptr ? std::filesystem::absolute(folder->path()).string() : "", 0);
  try {
    return RunFolder::open(path);
  } catch (const Error& error) {
    throw Error(concat(error.what(),
                       "; with train.zero = 1 every rank writes its part of a "
                       "checkpoint, so train.runs must be a folder that all ranks see"));
  }
}

}  // namespace fovea::train
