// SPDX-License-Identifier: Apache-2.0
#pragma once
// Where the elements of several tensors of one shape lie, as a kernel argument.

#include "core/dtype.h"
#include "core/shape.h"

namespace fovea {

template <int kOperands>
struct Layout {
  int rank;  // at least 1
  int64_t count;
  int64_t sizes[Shape::kMaxRank];
  int64_t strides[kOperands][Shape::kMaxRank];  // in elements

  // Whether every operand's elements lie one after another.
  bool flat() const {
    bool one = rank == 1;
    for (int k = 0; k < kOperands; ++k) one = one && strides[k][0] == 1;
    return one;
  }

  // Offsets of element i of the shape, row-major.
  FOVEA_HD void locate(int64_t i, int64_t (&offsets)[kOperands]) const {
    for (int k = 0; k < kOperands; ++k) offsets[k] = 0;
    for (int axis = rank - 1; axis > 0; --axis) {
      const int64_t index = i % sizes[axis];
      i /= sizes[axis];
      for (int k = 0; k < kOperands; ++k) offsets[k] += index * strides[k][axis];
    }
    for (int k = 0; k < kOperands; ++k) offsets[k] += i * strides[k][0];
  }
};

}  // namespace fovea
