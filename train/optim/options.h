// SPDX-License-Identifier: Apache-2.0
#pragma once
// The [optimizer] and [schedule] sections.

#include "core/config/config.h"

namespace fovea::train {

struct OptimizerOptions : config::Options {
  std::string kind = "adamw";  // adamw | sgd | lion | muon
  double lr = 1e-3;            // after warm-up
  double weight_decay = 0.1;   // decoupled: weights shrink by lr * weight_decay a step
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;  // adamw; lion uses the betas
  double momentum = 0.9;                         // sgd; muon (0.95 is usual)
  bool nesterov = false;                         // sgd
  int64_t newton_schulz = 5;                     // muon: steps of the orthogonalisation
  double adam_lr = 1e-3;  // muon: adamw's rate for what muon leaves: embeddings, heads, vectors
  bool decay_vectors = false;  // also biases and norm weights
  bool decay_embeddings = true;

  void describe(config::Fields& f) override;
};

struct ScheduleOptions : config::Options {
  std::string kind = "cosine";  // constant | cosine | linear | wsd
  int64_t warmup = 0;           // steps
  double final_fraction = 0.1;  // of the peak, at the last step
  double decay_fraction = 0.2;  // wsd: share of the steps that the final decay takes

  void describe(config::Fields& f) override;
};

// Rate of step `step` (0-based) of `steps`: linear warm-up to `peak`, then the schedule's shape.
// Throws for an unknown kind.
double learning_rate(double peak, const ScheduleOptions& schedule, int64_t step, int64_t steps);

}  // namespace fovea::train
