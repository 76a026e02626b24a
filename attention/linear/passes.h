// SPDX-License-Identifier: Apache-2.0
#pragma once
// The linear engine's two ways of running a call: here, and on a GPU device. Inputs are prepared.

#include "attention/linear/problem.h"

namespace fovea::attention {

// Fill result.out and result.state; fill grads.
void linear_forward_cpu(const LinearProblem& p, const LinearInputs& in, const LinearResult& result);
void linear_backward_cpu(const LinearProblem& p, const LinearInputs& in, const Tensor& dout,
                         const Tensor& dstate, const LinearGrads& grads);
void linear_forward_device(const LinearProblem& p, const LinearInputs& in,
                           const LinearResult& result);
void linear_backward_device(const LinearProblem& p, const LinearInputs& in, const Tensor& dout,
                            const Tensor& dstate, const LinearGrads& grads);

}  // namespace fovea::attention
