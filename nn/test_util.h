// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the tests of layers share: named random tensors and relative errors.

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "autograd/variable.h"
#include "core/rng.h"
#include "core/testing/error_of.h"

namespace fovea::nn {

inline Tensor random_tensor(const Shape& shape, const char* name, Dtype dtype = Dtype::f64) {
  const Tensor value = Tensor::empty(shape, Dtype::f64);
  fill_normal(value, RngKey(1, "test", name));
  return value.to(dtype);
}
inline Variable leaf(const Shape& shape, const char* name, Dtype dtype = Dtype::f64) {
  return Variable(random_tensor(shape, name, dtype), true);
}

// ||x - reference|| / ||reference||
inline double relative_error(const Tensor& x, const Tensor& reference) {
  const auto a = x.to_vector<double>(), b = reference.to_vector<double>();
  EXPECT_EQ(a.size(), b.size());
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-30));
}

}  // namespace fovea::nn
