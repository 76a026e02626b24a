// SPDX-License-Identifier: Apache-2.0
#pragma once
// Update rules over one contiguous piece of a parameter (f32). Everything is read and written once:
// AdamW moves 28 bytes an element (p, m, v in and out, g in).

#include <cstdint>

#include "core/cpu/isa.h"

namespace fovea {

struct AdamwStep {
  float factor;  // of the gradient: clipping
  float beta1, beta2;
  float step_size;   // lr / (1 - beta1^t)
  float root_scale;  // 1 / sqrt(1 - beta2^t)
  float eps;
  float shrink;  // 1 - lr weight_decay
};

}  // namespace fovea

FOVEA_SIMD_DECLARE(
    // m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  p <- shrink p - step_size m / (sqrt(v)
    // root_scale + eps)   (1711.05101)
    void adamw_update(float* p, const float* g, float* m, float* v, int64_t n, const AdamwStep& s);
    // m <- mu m + g;  p <- shrink p - lr (nesterov ? g + mu m : m)
    void sgd_update(float* p, const float* g, float* m, int64_t n, float factor, float lr, float mu,
                    bool nesterov, float shrink);
    // p <- shrink p - lr sign(b1 m + (1 - b1) g);  m <- b2 m + (1 - b2) g   (2302.06675)
    void lion_update(float* p, const float* g, float* m, int64_t n, float factor, float lr,
                     float beta1, float beta2, float shrink);
    // average <- average + (1 - decay) (p - average)
    void ema_update(float* average, const float* p, int64_t n, float rest);
    // In f64, the same bits under both instruction sets.
    double sum_of_squares(const float* x, int64_t n);)
