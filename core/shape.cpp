// SPDX-License-Identifier: Apache-2.0
#include "core/shape.h"

namespace fovea {

Shape broadcast_shapes(const char* op, const Shape& a, const Shape& b) {
  Shape out = a.rank() >= b.rank() ? a : b;
  for (int axis = 1; axis <= std::min(a.rank(), b.rank()); ++axis) {
    FOVEA_CHECK(a[-axis] == b[-axis] || a[-axis] == 1 || b[-axis] == 1, op, ": ", a, " and ", b,
                " do not broadcast (axis ", -axis, ": ", a[-axis], " and ", b[-axis], ")");
    out[-axis] = a[-axis] == 1 ? b[-axis] : a[-axis];
  }
  return out;
}

Shape contiguous_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    strides[axis] = step;
    step *= shape[axis];
  }
  return strides;
}

}  // namespace fovea
