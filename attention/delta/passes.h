// SPDX-License-Identifier: Apache-2.0
#pragma once
// The delta engine's two ways of running a call: here, and on a GPU device. Inputs are prepared,
// beta is [B, H, N, 1].

#include "attention/delta/delta.h"
#include "attention/linear/problem.h"

namespace fovea::attention {

// Fill result.out and result.state; fill grads.
void delta_forward_cpu(const LinearProblem& p, const DeltaInputs& in, const LinearResult& result);
void delta_backward_cpu(const LinearProblem& p, const DeltaInputs& in, const Tensor& dout,
                        const Tensor& dstate, const DeltaGrads& grads);
void delta_forward_device(const LinearProblem& p, const DeltaInputs& in,
                          const LinearResult& result);
void delta_backward_device(const LinearProblem& p, const DeltaInputs& in, const Tensor& dout,
                           const Tensor& dstate, const DeltaGrads& grads);

}  // namespace fovea::attention
