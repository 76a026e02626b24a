// SPDX-License-Identifier: Apache-2.0
#pragma once
// All ways of dividing a training step over some devices, with what each costs (cost.h), best
// first.

#include <nlohmann/json_fwd.hpp>

#include "train/plan/cost.h"

namespace fovea::train {

struct PlanRow {
  Division division;
  MemoryCost memory;
  TimeCost time;
  bool fits = true;
  double tokens_per_s = 0;
};

struct Plan {
  GptSizes sizes;
  Machine machine;
  std::vector<PlanRow> rows;         // those that fit, the fastest first; then the others
  std::vector<std::string> refused;  // why a mesh is none: "ulysses 3: does not divide 8 heads"
};

struct PlanOptions {
  int64_t devices = 1;
  bool linear = false;  // attention as a linear layer of states [D, D] with a gate a head
};

// Every mesh data x ring x ulysses of that many devices, rings that pass keys on and that gather
// them, zigzag (the model is causal), with and without ZeRO-1; double rings, whose inner rings are
// a node's devices; gathered keys of dispatched chunks, where they balance the mask better.
// experiment: batch, micro_batch, optimizer and averages.
Plan make_plan(const GptSizes& sizes, const Machine& machine, const Experiment& experiment,
               const PlanOptions& options);

// One sentence on the first row against the next of another mesh.
std::string why_best(const Plan& plan);
// "data 2 x ring 4 x ulysses 1, ring, zigzag, zero 1"
std::string describe(const Division& division);
// The same as flags of fovea train; none for Travel::state, which stands for another model.
std::vector<config::Flag> flags_of(const Division& division);

nlohmann::json to_json(const Plan& plan);

// Who holds which tokens, as an SVG: a bar a rank with its stretches; and for a ring that passes
// keys on, below, whose keys are there at each step, as dark as the pairs that are computed.
std::string draw(const Plan& plan, const Division& division);

}  // namespace fovea::train
