// SPDX-License-Identifier: Apache-2.0
#pragma once
// Elementwise activations. Backward recomputes from the saved input.

#include <string_view>

#include "autograd/variable.h"

namespace fovea::nn {

// gelu: x Phi(x) with the error function (1606.08415); gelu_tanh: its tanh form; silu: x
// sigmoid(x).
enum class Activation { relu, gelu, gelu_tanh, silu };
// Throws for a name that is none.
Activation parse_activation(std::string_view name);

// f(x), and dy f'(x): f32, bf16 or f64, any shape.
Tensor activated(const Tensor& x, Activation kind);
Tensor activation_gradient(const Tensor& dy, const Tensor& x, Activation kind);

// f32, bf16 or f64, any shape
Variable activate(const Variable& x, Activation kind);
// x [..., 2F] -> [..., F]: silu(x[..., :F]) * x[..., F:] (2002.05202 eq. 6)
Variable swiglu(const Variable& x);

}  // namespace fovea::nn
