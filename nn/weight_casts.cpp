// SPDX-License-Identifier: Apache-2.0
#include "nn/weight_casts.h"

#include <utility>

namespace fovea::nn {
namespace {

thread_local WeightCasts* t_current = nullptr;

}  // namespace

WeightCasts::WeightCasts() : before_(std::exchange(t_current, this)) {}
WeightCasts::~WeightCasts() { t_current = before_; }

Tensor cast_weight(const Tensor& weight, Dtype dtype) {
  if (weight.dtype() == dtype || t_current == nullptr) return weight.to(dtype);
  auto& [known, cast] = t_current->copies_[weight.raw()];
  const bool fits = known.defined() && cast.dtype() == dtype && known.shape() == weight.shape() &&
                    known.strides() == weight.strides();
  if (!fits) known = weight, cast = weight.to(dtype);
  return cast;
}

}  // namespace fovea::nn
