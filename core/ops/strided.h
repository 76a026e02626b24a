// SPDX-License-Identifier: Apache-2.0
#pragma once
// Walking several tensors of one shape but different strides, in parallel: the shape is first
// simplified (axes that are contiguous in every operand are merged), so that the usual case is one
// long inner loop.

#include <array>

#include "core/cuda/layout.h"
#include "core/parallel.h"
#include "core/tensor.h"

namespace fovea {

template <int kOperands>
struct StridedLoop {
  Shape shape;                           // simplified, rank >= 1
  std::array<Shape, kOperands> strides;  // in elements

  StridedLoop(const Shape& full, const std::array<Shape, kOperands>& full_strides) {
    for (int axis = 0; axis < full.rank(); ++axis) {
      if (full[axis] == 1) continue;
      bool merges = shape.rank() > 0;
      for (int k = 0; k < kOperands && merges; ++k) {
        merges = strides[static_cast<size_t>(k)][-1] ==
                 full_strides[static_cast<size_t>(k)][axis] * full[axis];
      }
      if (merges) {
        shape[-1] *= full[axis];
      } else {
        shape.push_back(full[axis]);
      }
      for (size_t k = 0; k < kOperands; ++k) {
        if (merges)
          strides[k][-1] = full_strides[k][axis];
        else
          strides[k].push_back(full_strides[k][axis]);
      }
    }
    if (shape.rank() == 0) {
      shape.push_back(full.numel());
      for (auto& s : strides) s.push_back(1);
    }
  }

  // f(offsets, count, inner strides): one run of `count` elements along the last axis.
  template <typename F>
  void run(F&& f) const {
    if (shape.numel() == 0) return;
    std::array<int64_t, kOperands> inner_strides;
    for (size_t k = 0; k < kOperands; ++k) inner_strides[k] = strides[k][-1];
    const int64_t inner = shape[-1];
    const int64_t rows = shape.numel() / inner;
    constexpr int64_t kGrain = 32768;
    if (rows == 1) {
      parallel_for(0, inner, kGrain, [&](int64_t begin, int64_t end) {
        std::array<int64_t, kOperands> offsets;
        for (size_t k = 0; k < kOperands; ++k) offsets[k] = begin * inner_strides[k];
        f(offsets, end - begin, inner_strides);
      });
      return;
    }
    parallel_for(0, rows, std::max<int64_t>(1, kGrain / inner), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        std::array<int64_t, kOperands> offsets{};
        int64_t rest = row;
        for (int axis = shape.rank() - 2; axis >= 0; --axis) {
          const int64_t index = rest % shape[axis];
          rest /= shape[axis];
          for (size_t k = 0; k < kOperands; ++k) offsets[k] += index * strides[k][axis];
        }
        f(offsets, inner, inner_strides);
      }
    });
  }
};

// The same walk as a kernel's argument.
template <int kOperands>
Layout<kOperands> layout_of(const StridedLoop<kOperands>& loop) {
  Layout<kOperands> layout{};
  layout.rank = loop.shape.rank();
  layout.count = loop.shape.numel();
  for (int axis = 0; axis < layout.rank; ++axis) {
    layout.sizes[axis] = loop.shape[axis];
    for (int k = 0; k < kOperands; ++k)
      layout.strides[k][axis] = loop.strides[static_cast<size_t>(k)][axis];
  }
  return layout;
}

}  // namespace fovea
