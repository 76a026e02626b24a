// SPDX-License-Identifier: Apache-2.0
#pragma once
// The copies of f32 weights in which layers compute.

#include <unordered_map>

#include "core/tensor.h"

namespace fovea::nn {

// While one lives on this thread, a copy is made once and kept until its end: for several forward
// passes between two changes of the weights, which must not change as long. Worth its memory (the
// copies of all layers) where a step has several micro-batches; a pass alone frees each copy when
// its layer's backward is done.
class WeightCasts {
 public:
  WeightCasts();
  ~WeightCasts();
  WeightCasts(const WeightCasts&) = delete;
  WeightCasts& operator=(const WeightCasts&) = delete;

 private:
  friend Tensor cast_weight(const Tensor& weight, Dtype dtype);
  struct Copy {
    Tensor weight, cast;
  };
  std::unordered_map<const void*, Copy> copies_;  // by where the weight lies
  WeightCasts* before_;
};

// The weight in `dtype`: itself, a copy, or the one that the WeightCasts in force has.
Tensor cast_weight(const Tensor& weight, Dtype dtype);

}  // namespace fovea::nn
