// SPDX-License-Identifier: Apache-2.0
#pragma once
// Optimizers, each fused over all parameters: one pass over fixed blocks of the concatenation of
// everything that moves. Parameters and states are f32; results do not depend on the number of
// threads.

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nn/module.h"
#include "train/optim/device_table.h"
#include "train/optim/options.h"

namespace fovea::train {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;
using Parameters = std::vector<nn::NamedParameter>;

// What gradients are multiplied by before a step: a number; or, with a norm (gradient_norm),
// min(1, most / norm), read where the norm lives, so that the host need not wait for a GPU.
struct Clip {
  double factor = 1.0;
  Tensor norm;  // [1] f32
  double most = 0.0;
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  // One update from the gradients, each multiplied by `factor` first (clipping). Parameters without
  // gradient stay.
  void step(double lr, double factor) { step(lr, Clip{.factor = factor, .norm = {}}); }
  void step(double lr, const Clip& clip) {
    advance(lr);
    update(clip);
  }
  // The same in two parts: update() can be captured (core/graph.h), and its replay is told by
  // advance() which step it is. The optimizer outlives the graph.
  void advance(double lr) {
    ++steps_;
    lr_ = lr;
  }
  virtual void update(const Clip& clip) = 0;
  // State in a fixed order ("m.<parameter>"), for checkpoints: the tensors themselves, not copies.
  virtual NamedTensors state() const = 0;
  // Completed steps (bias correction).
  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }

 protected:
  double lr() const { return lr_; }

 private:
  int64_t steps_ = 0;
  double lr_ = 0.0;
};

// Throws for a parameter that is not f32, for one that is listed twice, and for parameters on two
// devices. States live where the parameters do.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerOptions& options,
                                          const Parameters& parameters);

// Operations of a step of a parameter that the rule moves as a whole (muon's matrices); 0: it moves
// element by element, and its pieces may lie on several ranks.
int64_t whole_cost(const OptimizerOptions& options, const std::string& name, const Shape& shape);

// Root of the sum of squares of all gradients.
double global_norm(const Parameters& parameters);
// The same as a tensor [1] f32 on the parameters' device: a GPU's host does not wait for it.
Tensor gradient_norm(const Parameters& parameters);

// The first NaN or infinity among gradients, then among values: "gradient of
// blocks.3.mlp.up.weight, element 17: nan".
std::optional<std::string> first_nonfinite(const Parameters& parameters);

// Averaged weights (Polyak): average <- decay average + (1 - decay) weights, after each step.
// update() throws while a Swap lives.
class Ema {
 public:
  Ema(const Parameters& parameters, double decay);
  void update();
  NamedTensors state() const { return averages_; }

  // While one lives, the parameters hold the averages; then the trained values again, bit for bit.
  class Swap {
   public:
    explicit Swap(Ema& ema);
    ~Swap() { ema_.exchange(); }
    Swap(const Swap&) = delete;
    Swap& operator=(const Swap&) = delete;

   private:
    Ema& ema_;
  };

 private:
  void exchange();

  Parameters parameters_;
  NamedTensors averages_;
  DeviceTable table_;
  double decay_;
  bool swapped_ = false;
};

}  // namespace fovea::train
