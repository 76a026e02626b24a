// SPDX-License-Identifier: Apache-2.0
#pragma once
// Where a Function's operands lie, and what a device computes in.

#include <initializer_list>

#include "core/tensor.h"

namespace fovea::nn {

struct Operand {
  const char* name;
  const Tensor& tensor;  // or absent
};

// Throws naming `op` unless the others lie on x's device, and, where that is no cpu, all hold f32
// or bf16.
inline void check_operands(const char* op, const Tensor& x,
                           std::initializer_list<Operand> others = {}) {
  const auto check_dtype = [&](const char* name, const Tensor& t) {
    FOVEA_CHECK(t.device().is_cpu() || t.dtype() == Dtype::f32 || t.dtype() == Dtype::bf16, op,
                ": ", name, " is ", t.dtype(), "; device ", t.device(),
                " computes in f32 and bf16");
  };
  check_dtype("the input", x);
  for (const Operand& other : others) {
    if (!other.tensor.defined()) continue;
    FOVEA_CHECK(other.tensor.device() == x.device(), op, ": the input is on ", x.device(), " but ",
                other.name, " is on ", other.tensor.device());
    check_dtype(other.name, other.tensor);
  }
}

}  // namespace fovea::nn
