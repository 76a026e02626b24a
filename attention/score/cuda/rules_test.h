// SPDX-License-Identifier: Apache-2.0
#pragma once
// Rules that are tests' alone, on every device: their weights for numbers (a card sees float).

#include <cmath>

#include "attention/score/cuda/kernels.h"

namespace fovea {

FOVEA_HD inline float positive(float x) { return x > 0.0f ? x : 0.0f; }

// w = sigmoid(s - 1) (2409.04431), no normaliser.
struct SigmoidNumbers {
  static constexpr bool kNormalised = false, kOnline = false;
  FOVEA_HD float weight(float s, float) const { return 1.0f / (1.0f + expf(1.0f - s)); }
  FOVEA_HD float derivative(float, float w) const { return w * (1.0f - w); }
};
// w = relu(s)^2 over its sum.
struct SquaredReluNumbers {
  static constexpr bool kNormalised = true, kOnline = false;
  FOVEA_HD float weight(float s, float) const { return positive(s) * positive(s); }
  FOVEA_HD float derivative(float s, float) const { return 2.0f * positive(s); }
};

}  // namespace fovea

FOVEA_GPU_DECLARE(void sigmoid_forward(const attention::ScoreCall& call, Stream stream);
                  void sigmoid_backward(const attention::ScoreCall& call, Stream stream);
                  void squared_relu_forward(const attention::ScoreCall& call, Stream stream);
                  void squared_relu_backward(const attention::ScoreCall& call, Stream stream);)
