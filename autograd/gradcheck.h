// SPDX-License-Identifier: Apache-2.0
#pragma once
// Handwritten gradients against central differences, in f64: every Function owes one such test.

#include <functional>

#include "autograd/function.h"

namespace fovea {

struct GradcheckOptions {
  double step = 1e-6;       // of the central difference, times max(1, |x|)
  double tolerance = 1e-6;  // on |analytic - numeric| / max(1, |analytic|, |numeric|)
  uint64_t seed = 1;        // of the random cotangents
};

// Compares the gradient of sum_k <cotangent_k, f(inputs)_k> by every element of every input. Inputs
// are f64 leaves with requires_grad; f must be a pure function of their values. Throws naming the
// worst entry: input, element, both values.
void gradcheck(const std::function<Variables(const Variables&)>& f, const Variables& inputs,
               const GradcheckOptions& options = {});
void gradcheck(const std::function<Variable(const Variables&)>& f, const Variables& inputs,
               const GradcheckOptions& options = {});

}  // namespace fovea
