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
    f([i](const float* p) FOVEA_LAMBDA_INLINE { return load(p + i); }, [i](float* p, Vec x) FOVEA_LAMBDA_INLINE { store(p + i, x); });
  }
  if (i < n) {
    const Mask tail = first_lanes(n - i);
    f([i, tail](const float* p) FOVEA_LAMBDA_INLINE { return load(p + i, tail); },
      [i, tail](float* p, Vec x) FOVEA_LAMBDA_INLINE { store(p + i, x, tail); });
  }
}

}  // namespace

void adamw_update(float* p, const float* g, float* m, float* v, int64_t n, const AdamwStep& s) {
  const Vec factor = splat(s.factor), b1 = splat(s.beta1), b2 = splat(s.beta2), rest1 = splat(1.0f - s.beta1), rest2 = splat(1.0f - s.beta2);
  const Vec size = splat(s.step_size), root = splat(s.root_scale), eps = splat(s.eps), shrink = splat(s.shrink);
  for_vectors(n, [&](auto read, auto write) FOVEA_LAMBDA_INLINE {
    const Vec gradient = read(g) * factor;
    const Vec mean = fma(b1, read(m), rest1 * gradient);
    const Vec square = fma(b2, read(v), rest2 * (gradient * gradient));
    write(m, mean);
    write(v, square);
    write(p, fnma(size, mean / fma(sqrt(square), root, eps), shrink * read(p)));
  });
}

void sgd_update(float* p, const float* g, float* m, int64_t n, float factor, float lr, float mu, bool nesterov, float shrink) {
  const Vec f = splat(factor), rate = splat(lr), memory = splat(mu), s = splat(shrink);
  for_vectors(n, [&](auto read, auto write) FOVEA_LAMBDA_INLINE {
    const Vec gradient = read(g) * f;
    const Vec velocity = fma(memory, read(m), gradient);
    write(m, velocity);
    write(p, fnma(rate, nesterov ? fma(memory, velocity, gradient) : velocity, s * read(p)));
  });
}

void lion_update(float* p, const float* g, float* m, int64_t n, float factor, float lr, float beta1, float beta2, float shrink) {
  const Vec f = splat(factor), rate = splat(lr), b1 = splat(beta1), b2 = splat(beta2), s = splat(shrink), nothing = zero();
  for_vectors(n, [&](auto read, auto write) FOVEA_LAMBDA_INLINE {
    const Vec gradient = read(g) * f, momentum = read(m);
    const Vec direction = fma(b1, momentum, (splat(1.0f) - b1) * gradient);
    const Vec sign = select(nothing < direction, splat(1.0f), select(direction < nothing, splat(-1.0f), direction));
    write(p, fnma(rate, sign, s * read(p)));
    write(m, fma(b2, momentum, (splat(1.0f) - b2) * gradient));
  });
}

void ema_update(float* average, const float* p, int64_t n, float rest) {
  const Vec r = splat(rest);
  for_vectors(n, [&](auto read, auto write) FOVEA_LAMBDA_INLINE { write(average, fma(r, read(p) - read(average), read(average))); });
}

double sum_of_squares(const float* x, int64_t n) {
  // Short runs in f32, then f64: no overflow for gradients below 1e18.
  double total = 0.0;
  for (int64_t begin = 0; begin < n; begin += 1024) {
    Vec sum4 = zero();
    for_vectors(n - begin < 1024 ? n - begin : 1024, [&](auto read, auto) FOVEA_LAMBDA_INLINE {
      const Vec value = read(x + begin);
      sum4 = fma(value, value, sum4);
    });
    total += static_cast<double>(sum(sum4));
  }
  return total;
}

}  // namespace FOVEA_SIMD
