// SPDX-License-Identifier: Apache-2.0
#include "data/image/randaugment.h"

namespace fovea::data {
namespace {

// out(p) = in(centre + M (p - centre) + shift), bilinear, zeros outside. M = {yy, yx, xy, xx}.
struct Warp {
  double yy = 1.0, yx = 0.0, xy = 0.0, xx = 1.0, shift_y = 0.0, shift_x = 0.0;
};

void warp(float* image, int64_t channels, int64_t height, int64_t width, const Warp& m) {
  const std::vector<float> before(image, image + channels * height * width);
  const double centre_y = 0.5 * static_cast<double>(height - 1),
               centre_x = 0.5 * static_cast<double>(width - 1);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const double from_centre_y = static_cast<double>(y) - centre_y,
                   from_centre_x = static_cast<double>(x) - centre_x;
      const double at_y = centre_y + m.yy * from_centre_y + m.yx * from_centre_x + m.shift_y;
      const double at_x = centre_x + m.xy * from_centre_y + m.xx * from_centre_x + m.shift_x;
      const auto y0 = static_cast<int64_t>(std::floor(at_y)),
                 x0 = static_cast<int64_t>(std::floor(at_x));
      const auto fy = static_cast<float>(at_y - static_cast<double>(y0)),
                 fx = static_cast<float>(at_x - static_cast<double>(x0));
      for (int64_t c = 0; c < channels; ++c) {
        const auto pixel = [&](int64_t py, int64_t px) {
          return py >= 0 && py < height && px >= 0 && px < width
                     ? before[static_cast<size_t>((c * height + py) * width + px)]
                     : 0.0f;
        };
        image[(c * height + y) * width + x] =
            (1.0f - fy) * ((1.0f - fx) * pixel(y0, x0) + fx * pixel(y0, x0 + 1)) +
            fy * ((1.0f - fx) * pixel(y0 + 1, x0) + fx * pixel(y0 + 1, x0 + 1));
      }
    }
  }
}

template <typename F>
void each(float* image, int64_t count, F&& f) {
  for (int64_t i = 0; i < count; ++i) image[i] = std::clamp(f(image[i]), 0.0f, 1.0f);
}

void autocontrast(float* plane, int64_t area) {
  const auto [low, high] = std::minmax_element(plane, plane + area);
  const float least = *low, range = *high - *low;
  if (range > 0.0f) each(plane, area, [=](float v) { return (v - least) / range; });
}

}  // namespace

void randaugment(float* image, int64_t channels, int64_t height, int64_t width, double strength,
                 Draw& draw) {
  const int64_t area = height * width, count = channels * area, op = draw.below(11);
  const double signed_strength = draw.coin(0.5) ? strength : -strength;
  const auto factor = static_cast<float>(1.0 + 0.9 * signed_strength);
  switch (op) {
    case 0:
      return;
    case 1:
      for (int64_t c = 0; c < channels; ++c) autocontrast(image + c * area, area);
      return;
    case 2:
      return each(image, count, [=](float v) { return factor * v; });
    case 3: {
      double mean = 0.0;
      for (int64_t i = 0; i < count; ++i)
        mean += static_cast<double>(image[i]) / static_cast<double>(count);
      return each(image, count,
                  [factor, m = static_cast<float>(mean)](float v) { return m + factor * (v - m); });
    }
    case 4: {
      const auto levels = static_cast<float>(1 << (8 - std::lround(4.0 * strength)));
      return each(image, count, [=](float v) {
        return std::floor(v * 255.0f / 256.0f * levels) / levels * 256.0f / 255.0f;
      });
    }
    case 5:
      return each(image, count, [limit = static_cast<float>(1.0 - strength)](float v) {
        return v > limit ? 1.0f - v : v;
      });
    case 6: {
      const double angle = signed_strength * 0.5235987755982988;  // 30 degrees
      return warp(image, channels, height, width,
                  {std::cos(angle), std::sin(angle), -std::sin(angle), std::cos(angle), 0.0, 0.0});
    }
    case 7:
      return warp(image, channels, height, width, {1.0, 0.3 * signed_strength, 0.0, 1.0, 0.0, 0.0});
    case 8:
      return warp(image, channels, height, width, {1.0, 0.0, 0.3 * signed_strength, 1.0, 0.0, 0.0});
    case 9:
      return warp(image, channels, height, width,
                  {1.0, 0.0, 0.0, 1.0, 0.45 * signed_strength * static_cast<double>(height), 0.0});
    default:
      return warp(image, channels, height, width,
                  {1.0, 0.0, 0.0, 1.0, 0.0, 0.45 * signed_strength * static_cast<double>(width)});
  }
}

}  // namespace fovea::data
