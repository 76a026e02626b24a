// SPDX-License-Identifier: Apache-2.0
#include "attention/places.h"

namespace fovea::attention {
namespace {

// visit(view of the whole, first token, end) for stretches of tokens, two at most: those that have
// a whole stride behind them, and a last one that has not.
template <typename Visit>
void for_each_view(const Tensor& whole, int axis, const Place& place, int64_t count,
                   const Visit& visit) {
  const auto [base, stride] = place;
  FOVEA_CHECK(base >= 0 && stride >= 1 && (count == 0 || place.of(count - 1) < whole.dim(axis)),
              "take: ", count, " tokens from ", base, " on, every ", stride, ", leave the ",
              whole.dim(axis), " there are");
  if (count == 0) return;
  if (stride == 1) return visit(whole.slice(axis, base, base + count), 0, count);
  const int64_t together = place.of(count) <= whole.dim(axis) ? count : count - 1;
  if (together > 0) {
    const Tensor rows = whole.slice(axis, base, place.of(together));
    Shape shape;
    for (int a = 0; a < rows.rank(); ++a) {
      shape.push_back(a == axis ? together : rows.dim(a));
      if (a == axis) shape.push_back(stride);
    }
    visit(rows.view(shape).select(axis + 1, 0), 0, together);
  }
  if (together < count)
    visit(whole.slice(axis, place.of(together), place.of(together) + 1), together, count);
}

}  // namespace

Tensor take(const Tensor& whole, int axis, const Place& place, int64_t count) {
  if (place.stride == 1 && count > 0) return whole.slice(axis, place.base, place.of(count));
  Shape shape = whole.shape();
  shape[axis] = count;
  const Tensor part = Tensor::empty(shape, whole.dtype(), whole.device());
  for_each_view(whole, axis, place, count, [&](const Tensor& view, int64_t begin, int64_t end) {
    part.slice(axis, begin, end).copy_(view);
  });
  return part;
}

void put(const Tensor& whole, int axis, const Place& place, const Tensor& part) {
  for_each_view(whole, axis, place, part.dim(axis),
                [&](const Tensor& view, int64_t begin, int64_t end) {
                  view.copy_(part.slice(axis, begin, end));
                });
}

}  // namespace fovea::attention
