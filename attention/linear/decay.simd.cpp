// SPDX-License-Identifier: Apache-2.0
#include "attention/linear/decay.h"

#include "core/cpu/simd.h"

namespace FOVEA_SIMD {

void exp_all(float* x, int64_t n) {
  for (int64_t c = 0; c < n; c += kLanes) {
    const Mask m = first_lanes(n - c);
    store(x + c, exp(load(x + c, m)), m);
  }
}

void decayed_products(float* s, const float* q, const float* k, const float* b, int64_t rows,
                      int64_t channels) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      Vec total = zero();
      for (int64_t c = 0; c < channels; c += kLanes) {
        const Mask m = first_lanes(channels - c);
        const Vec decay =
            exp_nonpositive(load(b + i * channels + c, m) - load(b + j * channels + c, m));
        total = fma(load(q + i * channels + c, m) * load(k + j * channels + c, m), decay, total);
      }
      s[i * 64 + j] = sum(total);
    }
  }
}

void decayed_products_backward(float* dq, float* dk, const float* ds, const float* q,
                               const float* k, const float* b, int64_t rows, int64_t channels) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const Vec weight = splat(ds[i * 64 + j]);
      for (int64_t c = 0; c < channels; c += kLanes) {
        const Mask m = first_lanes(channels - c);
        const int64_t at = i * channels + c, to = j * channels + c;
        const Vec scaled = weight * exp_nonpositive(load(b + at, m) - load(b + to, m));
        store(dq + at, fma(scaled, load(k + to, m), load(dq + at, m)), m);
        store(dk + to, fma(scaled, load(q + at, m), load(dk + to, m)), m);
      }
    }
  }
}

}  // namespace FOVEA_SIMD
