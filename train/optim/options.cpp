// SPDX-License-Identifier: Apache-2.0
#include "train/optim/options.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace fovea::train {

void OptimizerOptions::describe(config::Fields& f) {
  f.add("kind", kind, "update rule", config::one_of({"adamw", "sgd", "lion", "muon"}));
  f.add("lr", lr, "learning rate after warm-up", config::positive());
  f.add("weight_decay", weight_decay, "decoupled: weights shrink by lr * weight_decay a step",
        config::at_least(0.0));
  f.add("beta1", beta1, "adamw, lion: memory of the gradient", config::between(0.0, 1.0));
  f.add("beta2", beta2, "adamw: memory of the squared gradient; lion: of the momentum",
        config::between(0.0, 1.0));
  f.add("eps", eps, "adamw: added to the root of the squared gradient", config::positive());
  f.add("momentum", momentum, "sgd, muon", config::between(0.0, 1.0));
  f.add("nesterov", nesterov, "sgd: look ahead by one step of momentum");
  f.add("newton_schulz", newton_schulz, "muon: iterations of the orthogonalisation",
        config::at_least(1));
  f.add("adam_lr", adam_lr, "muon: adamw's rate for embeddings, heads and vectors",
        config::positive());
  f.add("decay_vectors", decay_vectors, "weight decay also on biases and norm weights");
  f.add("decay_embeddings", decay_embeddings, "weight decay also on embeddings");
}

void ScheduleOptions::describe(config::Fields& f) {
  f.add("kind", kind, "shape after warm-up",
        config::one_of({"constant", "cosine", "linear", "wsd"}));
  f.add("warmup", warmup, "linear growth from 0", config::at_least(0), "steps");
  f.add("final_fraction", final_fraction, "of the peak rate, at the last step", config::fraction());
  f.add("decay_fraction", decay_fraction, "wsd: share of all steps that the final decay takes",
        config::fraction());
}

double learning_rate(double peak, const ScheduleOptions& s, int64_t step, int64_t steps) {
  FOVEA_CHECK(s.kind == "constant" || s.kind == "cosine" || s.kind == "linear" || s.kind == "wsd",
              "schedule: unknown kind ", s.kind, "; expected constant, cosine, linear or wsd");
  if (step < s.warmup) return peak * static_cast<double>(step + 1) / static_cast<double>(s.warmup);
  if (s.kind == "constant") return peak;
  // Progress of the decay, 0 at its first step and 1 at the last step of all.
  int64_t first = s.warmup;
  if (s.kind == "wsd")
    first = std::max(first, steps - static_cast<int64_t>(std::llround(s.decay_fraction *
                                                                      static_cast<double>(steps))));
  if (step < first) return peak;
  const double progress = steps - 1 > first
                              ? std::min(1.0, static_cast<double>(step - first) /
                                                  static_cast<double>(steps - 1 - first))
                              : 1.0;
  const double shape =
      s.kind == "cosine" ? 0.5 * (1.0 + std::cos(std::numbers::pi * progress)) : 1.0 - progress;
  return peak * (s.final_fraction + (1.0 - s.final_fraction) * shape);
}

}  // namespace fovea::train
