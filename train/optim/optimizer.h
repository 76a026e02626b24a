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
#include "train/optim/options.h"

namespace fovea::train {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;
using Parameters = std::vector<nn::NamedParameter>;

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  // One update from the gradients, each multiplied by `factor` first (clipping). Parameters without
  // gradient stay.
  void step(double lr, double factor) {
    ++steps_;
    update(lr, factor);
  }
  // State in a fixed order ("m.<parameter>"), for checkpoints: the tensors themselves, not copies.
  virtual NamedTensors state() const = 0;
  // Completed steps (bias correction).
  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }

 protected:
  virtual void update(double lr, double factor) = 0;

 private:
  int64_t steps_ = 0;
};

// Throws for a parameter that is not f32, and for one that is listed twice.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerOptions& options,
                                          const Parameters& parameters);

// Root of the sum of squares of all gradients.
double global_norm(const Parameters& parameters);

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
  double decay_;
  bool swapped_ = false;
};

}  // namespace fovea::train
