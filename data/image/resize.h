// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace fovea::data {

// Part of an image in pixels; edges may lie between pixels.
struct Region {
  double top, left, height, width;
};

// `region` of an image [C, H, W] stretched to out [C, out_height, out_width] with a triangle filter
// as wide as the shrinking asks for: bilinear when enlarging, free of aliasing when reducing.
// Separable.
void resize(const float* image, int64_t channels, int64_t height, int64_t width,
            const Region& region, float* out, int64_t out_height, int64_t out_width);

}  // namespace fovea::data
