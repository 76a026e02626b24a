// SPDX-License-Identifier: Apache-2.0
#pragma once
// A step's work on a GPU device, queued kernel by kernel or, once it is known to be the same every
// time, captured and replayed as one graph (core/graph.h). Both give the same bits.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/graph.h"
#include "data/source.h"
#include "nn/module.h"

namespace fovea::train {

// Numbers of a step that stay on the device until the host asks.
struct StepWork {
  std::vector<Tensor> losses;  // of the micro-batches
  Tensor norm;                 // of the gradient, before clipping
};

class StepGraph {
 public:
  // automatic: where the step can be captured; else one warning says why not. on: it must be.
  enum class Use { automatic, on, off };
  // Of the words auto, on and off; auto is off but on a card: elsewhere nothing is gained.
  static Use parse(const std::string& word, Device device);

  // queue: forward, backward, clip and update for a batch, whose floating tensors may be on the
  // device. It ends in the gradients of `parameters`. What it reads of the host beside the batch
  // comes by host_input.
  StepGraph(Use use, Device device, std::vector<nn::NamedParameter> parameters,
            std::function<StepWork(const data::Batch& batch)> queue);
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;

  StepWork run(const data::Batch& batch);
  bool wanted() const { return use_ != Use::off; }
  bool captured() const { return graph_.has_value(); }
  int64_t bytes() const { return graph_ ? graph_->bytes() : 0; }  // of the graph's memory

 private:
  void capture();
  Tensor fixed(Tensor data::Batch::*part);
  void give_up(const std::string& why);

  static constexpr int kWarmUps = 2;  // steps before the capture: what is made once, is made then

  Use use_;
  const Device device_;
  const std::vector<nn::NamedParameter> parameters_;
  const std::function<StepWork(const data::Batch&)> queue_;
  int runs_ = 0;

  // The captured step: the batch it reads, which a replay overwrites, and what it leaves.
  data::Batch batch_, fixed_;
  std::optional<Graph> graph_;
  StepWork work_;
  std::vector<Tensor> gradients_;
};

}  // namespace fovea::train
