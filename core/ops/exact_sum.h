// SPDX-License-Identifier: Apache-2.0
#pragma once
// A sum of f32 tensors that is a function of the addends alone: neither their order, nor how they
// are divided over sums that are added later (those of other ranks), changes a bit. Addends are
// integers of two parts (core/fixed_point.h), 16 bytes an element, and are rounded to multiples of
// 2^-64 each; the sum is rounded to f32 once.

#include "core/tensor.h"

namespace fovea {

class ExactSum {
 public:
  // Of tensors of this shape, on this device. Zero.
  ExactSum(const Shape& shape, Device device);

  // x: f32, of the shape, on the device. An element that is no number, or not below 2^23 in
  // magnitude, is left out, and the sum is no longer good().
  void add(const Tensor& x);
  int64_t addends() const { return addends_; }
  // Whether every element could be added. A GPU's host waits for it.
  bool good() const;
  // i64 [2, n]: sums are added by adding these. No more addends than FixedPoint::kMostAddends in
  // all.
  const Tensor& parts() const { return parts_; }
  // f32, of the shape.
  Tensor total() const;
  void clear();

 private:
  Shape shape_;
  Tensor parts_;  // high parts, low parts
  Tensor bad_;    // i32 [1]: 1 when an element was left out
  int64_t addends_ = 0;
};

}  // namespace fovea
