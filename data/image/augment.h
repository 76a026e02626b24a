// SPDX-License-Identifier: Apache-2.0
#pragma once
// Random changes of training images, in the order of the options. Every choice is drawn at (seed,
// ordinal of the sample).

#include "core/config/config.h"
#include "data/draw.h"

namespace fovea::data {

struct AugmentOptions : config::Options {
  double crop_area =
      1.0;  // random resized crop (1409.4842): at least this share of the area; 1: none
  bool flip = false;
  int64_t crop_padding = 0;
  int64_t randaugment_ops = 0;  // RandAugment (1909.13719) with this many operations an image
  double randaugment_magnitude = 5.0;
  double erase = 0.0;   // random erasing (1708.04896) with this probability
  double mixup = 0.0;   // alpha of mixup (1710.09412)
  double cutmix = 0.0;  // alpha of cutmix (1905.04899); with mixup: one of the two, at random
  void describe(config::Fields& f) override;
  bool mixes() const { return mixup > 0.0 || cutmix > 0.0; }
};

// In place on one image [C, H, W] of values in [0, 1]; zeros fill what a shift uncovers.
void augment(float* image, int64_t channels, int64_t height, int64_t width,
             const AugmentOptions& options, Draw& draw);

// Mixes `other` into image: returns the share of the image that stays, the weight of its label.
double mix(float* image, const float* other, int64_t channels, int64_t height, int64_t width,
           const AugmentOptions& options, Draw& draw);

}  // namespace fovea::data
