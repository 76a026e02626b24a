// SPDX-License-Identifier: Apache-2.0
#include "train/step_graph.h"

#include <cstring>
#include <utility>

#include "core/warning.h"

namespace fovea::train {
namespace {

constexpr std::initializer_list<Tensor data::Batch::*> kParts{
    &data::Batch::inputs, &data::Batch::targets, &data::Batch::soft_targets};

bool alike(const Tensor& a, const Tensor& b) {
  return a.defined() == b.defined() &&
         (!a.defined() || (a.shape() == b.shape() && a.dtype() == b.dtype()));
}

}  // namespace

StepGraph::Use StepGraph::parse(const std::string& word, Device device) {
  if (word == "on") return Use::on;
  return word == "auto" && device.kind == Device::Kind::cuda ? Use::automatic : Use::off;
}

StepGraph::StepGraph(Use use, Device device, std::vector<nn::NamedParameter> parameters,
                     std::function<StepWork(const data::Batch&)> queue)
    : use_(use), device_(device), parameters_(std::move(parameters)), queue_(std::move(queue)) {
  FOVEA_CHECK(use != Use::on || !device.is_cpu(),
              "train.graph is on, but device cpu has no graphs; use auto");
}

StepWork StepGraph::run(const data::Batch& batch) {
  if (use_ != Use::off && batch.documents.defined())
    give_up("masks of documents are each batch's own");
  if (use_ == Use::off || (!graph_ && ++runs_ <= kWarmUps)) return queue_(batch);
  batch_ = batch;
  if (!graph_) {
    try {
      capture();
    } catch (const Error& error) {
      fixed_ = {};
      give_up(error.what());
      return queue_(batch);
    }
  }
  for (const auto part : kParts) {
    const Tensor &now = batch.*part, &then = fixed_.*part;
    if (!alike(now, then)) {
      give_up(concat("a batch of ", now.shape(), " follows batches of ", then.shape()));
      return queue_(batch);
    }
    if (now.defined() && !is_floating(now.dtype())) then.copy_(now);
  }
  graph_->replay();
  batch_ = {};
  // A step without the graph in between has left others.
  for (size_t i = 0; i < parameters_.size(); ++i) parameters_[i].variable.set_grad(gradients_[i]);
  return work_;
}

void StepGraph::capture() {
  for (const nn::NamedParameter& p : parameters_) p.variable.zero_grad();
  for (const auto part : kParts) {
    const Tensor& given = batch_.*part;
    fixed_.*part = given.defined() ? Tensor::empty(given.shape(), given.dtype()) : Tensor();
  }
  graph_ = Graph::capture(device_, [&] {
    data::Batch there;
    for (const auto part : kParts) there.*part = fixed(part);
    work_ = queue_(there);
  });
  gradients_.clear();
  for (const nn::NamedParameter& p : parameters_) gradients_.push_back(p.variable.grad());
}

// Where the captured step finds a part of the batch: values on the device; ids and labels, which
// the host checks and counts, on the host.
Tensor StepGraph::fixed(Tensor data::Batch::*part) {
  const Tensor& tensor = fixed_.*part;
  if (!tensor.defined() || !is_floating(tensor.dtype())) return tensor;
  return host_input(tensor.shape(), tensor.dtype(), device_, [this, part](void* to) {
    const Tensor values = (batch_.*part).contiguous();
    std::memcpy(to, values.raw(), static_cast<size_t>(values.bytes()));
  });
}

void StepGraph::give_up(const std::string& why) {
  FOVEA_CHECK(use_ != Use::on, "train.graph is on, but the step cannot be a graph: ", why);
  warn_once(concat("train.graph: steps run without a graph: ", why));
  use_ = Use::off;
  gradients_.clear();
  work_ = {};
  graph_.reset();
  batch_ = {};
}

}  // namespace fovea::train
