// SPDX-License-Identifier: Apache-2.0
#pragma once
// name -> attention system. A folder attention/<name>/ that holds <name>.h is a system; the build
// writes the list that calls its register_<name>(), so that adding a folder touches no other file.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "autograd/variable.h"
#include "core/config/config.h"
#include "nn/mixer.h"

namespace fovea::attention {

using NamedVariables = std::map<std::string, Variable>;

// One tensor of a system's operator, as `fovea op list` shows it.
struct TensorSpec {
  std::string name;   // "q"
  std::string shape;  // "[B, H, N, D]"
  bool optional = false;
};

// The operator alone, without projections: what golden files hold.
struct Operator {
  config::Factory options;  // defaults of the keys that a golden file's options JSON may have
  std::vector<TensorSpec> inputs, params, outputs;
  // tensors: inputs and params by name. Differentiable.
  std::function<NamedVariables(const NamedVariables& tensors, const config::Options& options)> run;
};

struct System {
  std::string name;
  std::string title;        // one line
  std::string paper;        // arXiv ids
  std::string family;       // engine: score, linear, ...
  bool parts = false;       // its mixer takes parts of sequences (attention/over_parts.h)
  config::Factory options;  // keys of [model.attention]
  std::function<std::unique_ptr<nn::Mixer>(const config::Options& options, int64_t channels,
                                           int64_t layer, int64_t layers)>
      make;
  Operator op;
};

// All systems by name.
const std::map<std::string, System>& systems();
// Throws naming the nearest system for a name that is none.
const System& system(const std::string& name);

// [model.attention]: kind = a system's name.
config::Choice attention_choice();
std::unique_ptr<nn::Mixer> make_attention(const config::Choice& attention, int64_t channels,
                                          int64_t layer, int64_t layers);

}  // namespace fovea::attention
