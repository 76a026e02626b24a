// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "data/draw.h"

namespace fovea::data {

// One operation of RandAugment (1909.13719, table 6) drawn from: identity, autocontrast,
// brightness, contrast, posterise, solarise, rotate, shear and translate along either axis.
// strength in [0, 1] scales the paper's largest (30 degrees, shear 0.3, 45 % of the size, factors 1
// +- 0.9, 4 bits); the sign is drawn. In place on [C, H, W] of values in [0, 1].
void randaugment(float* image, int64_t channels, int64_t height, int64_t width, double strength,
                 Draw& draw);

}  // namespace fovea::data
