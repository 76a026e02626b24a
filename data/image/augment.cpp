// SPDX-License-Identifier: Apache-2.0
#include "data/image/augment.h"

#include <algorithm>
#include <vector>

namespace fovea::data {

void AugmentOptions::describe(config::Fields& f) {
  f.add("flip", flip, "mirror left and right half of the time");
  f.add("crop_padding", crop_padding, "shift by up to this many pixels each way", config::at_least(0), "pixels");
}

void augment(float* image, int64_t channels, int64_t height, int64_t width, const AugmentOptions& options, const RngKey& rng) {
  if (options.flip && (random_word(rng, 0) & 1u) != 0) {
    for (int64_t row = 0; row < channels * height; ++row) std::reverse(image + row * width, image + (row + 1) * width);
  }
  if (options.crop_padding > 0) {
    const auto span = static_cast<uint64_t>(2 * options.crop_padding + 1);
    const int64_t dy = static_cast<int64_t>(random_below(rng, 1, span)) - options.crop_padding;
    const int64_t dx = static_cast<int64_t>(random_below(rng, 2, span)) - options.crop_padding;
    const std::vector<float> before(image, image + channels * height * width);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t y = 0; y < height; ++y) {
        for (int64_t x = 0; x < width; ++x) {
          const int64_t from_y = y + dy, from_x = x + dx;
          const bool inside = from_y >= 0 && from_y < height && from_x >= 0 && from_x < width;
          image[(c * height + y) * width + x] = inside ? before[static_cast<size_t>((c * height + from_y) * width + from_x)] : 0.0f;
        }
      }
    }
  }
}

}  // namespace fovea::data
