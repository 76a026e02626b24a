// SPDX-License-Identifier: Apache-2.0
#pragma once
// What tune_attention compares: kernels of the score engine for Hopper, by template parameter.

#include <functional>
#include <string>
#include <vector>

#include "attention/score/cuda/kernels.h"

namespace fovea::attention {

inline constexpr const char* kEngines = "the engine's";  // what is used without tuning

struct ForwardVariant {
  std::string name;
  int D;
  void (*run)(const ScoreCall&, Stream);
};

}  // namespace fovea::attention

FOVEA_GPU_DECLARE(std::vector<attention::ForwardVariant> forward_variants();
                  // Backward, the heads of keys in sections of so many (0: as the engine has it).
                  // mark() is called before and after the kernel between those of memory.
                  void backward_in_sections(const attention::ScoreCall& call, int section,
                                            const std::function<void()>& mark, Stream stream);)
