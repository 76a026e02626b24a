// SPDX-License-Identifier: Apache-2.0
#pragma once
// One matrix product, or an evenly spaced batch, as the libraries that compute it are told.

#include <cstdint>
#include <optional>

#include "core/dtype.h"

namespace fovea {

// What is done to a product before it is stored; `bias` is one of the operands then.
enum class Epilogue : uint8_t {
  plain,
  gelu  // c = gelu(pre), tanh form, pre = a b + bias; aux [m, n] receives pre
};

// c [batch, m, n] = a [batch, m, k] b [batch, k, n] (+ bias [n]) (+ c). Strides in elements; a and
// b have a unit stride along one of their two matrix axes, c along its last. A batch stride of 0
// means the same matrix for the whole batch.
struct MatmulProblem {
  Dtype in = Dtype::f32;
  Dtype out = Dtype::f32;
  std::optional<Dtype> bias = {};
  bool accumulate = false;
  bool tf32 = false;  // f32 operands may be rounded to tf32
  int64_t batch = 1, m = 0, n = 0, k = 0;
  int64_t a_batch = 0, a_row = 0, a_column = 1;
  int64_t b_batch = 0, b_row = 0, b_column = 1;
  int64_t c_batch = 0, c_row = 0;
  // Others than plain: one product (batch 1), of the dtype and strides of c for aux.
  Epilogue epilogue = Epilogue::plain;

  bool operator==(const MatmulProblem&) const = default;
};

}  // namespace fovea
