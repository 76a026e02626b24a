// SPDX-License-Identifier: Apache-2.0
#pragma once
// Activation recomputation (checkpointing, 1604.06174): f runs once without being recorded, only
// its inputs are kept, and backward runs it again with recording. The RandomScope of the first run
// is in force in the second, so that dropout draws the same numbers and the gradients have the same
// bits as without recomputation.

#include <functional>

#include "autograd/function.h"

namespace fovea {

// Results of f(inputs). Parameters that f captures get their gradients too, provided that at least
// one input requires one (otherwise nothing is recorded). f must live on: it is copied.
Variables recompute(std::function<Variables(const Variables&)> f, const Variables& inputs);

}  // namespace fovea
