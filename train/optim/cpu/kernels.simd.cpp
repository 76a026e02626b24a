// SPDX-License-Identifier: Apache-2.0
#include "train/optim/cpu/kernels.h"

#include "core/cpu/simd.h"

namespace FOVEA_SIMD {
namespace {

// f(i, load, store) over whole vectors, then over the masked rest.
template <typename F>
FOVEA_INLINE void for_vectors(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    f([i](const float* p) FOVEA_LAMBDA_INLINE { return load(p + i); },
      [i](float* p, Vec x) FOVEA_LAMBDA_INLINE { store(p + i, x); });
  }
  if (i < n) {
    const Mask tail = first_lanes(n - i);
    f([i, tail](const float* p) FOVEA_LAMBDA_INLINE { return load(p + i, tail); },
      [i, tail](float* p, Vec x) FOVEA_LAMBDA_INLINE { store(p + i, x, tail); });
  }
}

}  // namespace

void adamw_update(float* p, const float* g, float* m, float* v, int64_t n, const AdamwStep& s) {
  const Vec factor = splat(s.factor), b1 = splat(s.beta1), b2 = splat(s.beta2),
            rest1 = splat(1.0f - s.beta1), rest2 = splat(1.0f - s.beta2);
  const Vec size = splat(s.step_size), root = splat(s.root_scale), eps = splat(s.eps),
            shrink = splat(s.shrink);
  for_vectors(n, [&](auto read, auto write) FOVEA_LAMBDA_INLINE {
    const Vec gradient = read(g) * factor;
    const Vec mean = fma(b1, read(m), rest1 * gradient);
    const Vec square = fma(b2, read(v), rest2 * (gradient * gradient));
    write(m, mean);
    write(v, square);
    write(p, fnma(size, mean / fma(sqrt(square), root, eps), shrink * read(p)));
  });
}

void sgd_update(float* p, const float* g, float* m, int64_t n, float factor, float lr, float mu,
                bool nesterov, float shrink) {
  const Vec f = splat(factor), rate = splat(lr), memory = splat(mu), s = splat(shrink);
  for_vectors(n, [&](auto read, auto write) FOVEA_LAMBDA_INLINE {
    const Vec gradient = read(g) * f;
    const Vec velocity = fma(memory, read(m), gradient);
    write(m, velocity);
    write(p, fnma(rate, nesterov ? fma(memory, velocity, gradient) : velocity, s * read(p)));
  });
}

void lion_update(float* p, const float* g, float* m, int64_t n, float factor, float lr, float beta1,
                 float beta2, float shrink) {
  const Vec f = splat(factor), rate = splat(lr), b1 = splat(beta1), b2 = splat(beta2),
            s = splat(shrink), nothing = zero();
  for_vectors(n, [&](auto read, auto write) FOVEA_LAMBDA_INLINE {
    const Vec gradient = read(g) * f, momentum = read(m);
    const Vec direction = fma(b1, momentum, (splat(1.0f) - b1) * gradient);
    const Vec sign = select(nothing < direction, splat(1.0f),
                            select(direction < nothing, splat(-1.0f), direction));
    write(p, fnma(rate, sign, s * read(p)));
    write(m, fma(b2, momentum, (splat(1.0f) - b2) * gradient));
  });
}

void ema_update(float* average, const float* p, int64_t n, float rest) {
  const Vec r = splat(rest);
  for_vectors(n, [&](auto read, auto write) FOVEA_LAMBDA_INLINE {
    write(average, fma(r, read(p) - read(average), read(average)));
  });
}

// Element i goes to f64 accumulator i mod 16 and these are added as a fixed tree. A square of f32
// is exact in f64, so fused or not, and in vectors of 4 or of 8, the bits are the same; no f32
// overflows or vanishes on the way.
double sum_of_squares(const float* x, int64_t n) {
  double lanes[16];
#if defined(__AVX512F__)
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512d a = _mm512_cvtps_pd(_mm256_loadu_ps(x + i)),
                  b = _mm512_cvtps_pd(_mm256_loadu_ps(x + i + 8));
    low = _mm512_fmadd_pd(a, a, low);
    high = _mm512_fmadd_pd(b, b, high);
  }
  _mm512_storeu_pd(lanes, low);
  _mm512_storeu_pd(lanes + 8, high);
#else
  __m256d sums[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(),
                     _mm256_setzero_pd()};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4 * k));
      sums[k] = _mm256_fmadd_pd(a, a, sums[k]);
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) _mm256_storeu_pd(lanes + 4 * k, sums[k]);
#endif
  for (int k = 0; i + k < n; ++k)
    lanes[k] += static_cast<double>(x[i + k]) * static_cast<double>(x[i + k]);
  for (int width = 8; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) lanes[k] += lanes[k + width];
  }
  return lanes[0];
}

}  // namespace FOVEA_SIMD
