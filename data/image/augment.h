// SPDX-License-Identifier: Apache-2.0
#pragma once
// Random changes of training images. Every choice is drawn at (seed, ordinal of the sample).

#include "core/config/config.h"
#include "core/rng.h"

namespace fovea::data {

struct AugmentOptions : config::Options {
  bool flip = false;
  int64_t crop_padding = 0;
  void describe(config::Fields& f) override;
};

// In place on one image [C, H, W]; zeros fill what a shift uncovers.
void augment(float* image, int64_t channels, int64_t height, int64_t width, const AugmentOptions& options, const RngKey& rng);

}  // namespace fovea::data
