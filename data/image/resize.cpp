// SPDX-License-Identifier: Apache-2.0
#include "data/image/resize.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace fovea::data {
namespace {

// What one output coordinate takes from the input.
struct Taps {
  int64_t first;
  std::vector<float> weights;
};

std::vector<Taps> taps(double start, double extent, int64_t in, int64_t out) {
  const double step = extent / static_cast<double>(out), support = std::max(1.0, step);
  std::vector<Taps> all;
  for (int64_t o = 0; o < out; ++o) {
    const double centre = start + (static_cast<double>(o) + 0.5) * step;
    const int64_t first =
        std::clamp(static_cast<int64_t>(std::floor(centre - support)), int64_t{0}, in - 1);
    const int64_t last =
        std::clamp(static_cast<int64_t>(std::ceil(centre + support)), first + 1, in);
    Taps tap{first, {}};
    double total = 0.0;
    for (int64_t i = first; i < last; ++i) {
      const double weight =
          std::max(0.0, 1.0 - std::abs(static_cast<double>(i) + 0.5 - centre) / support);
      tap.weights.push_back(static_cast<float>(weight));
      total += weight;
    }
    for (float& weight : tap.weights)
      weight = static_cast<float>(static_cast<double>(weight) / total);
    all.push_back(std::move(tap));
  }
  return all;
}

}  // namespace

void resize(const float* image, int64_t channels, int64_t height, int64_t width,
            const Region& region, float* out, int64_t out_height, int64_t out_width) {
  const std::vector<Taps> rows = taps(region.top, region.height, height, out_height),
                          columns = taps(region.left, region.width, width, out_width);
  const int64_t first = rows.front().first,
                last = rows.back().first + static_cast<int64_t>(rows.back().weights.size());
  std::vector<float> narrow(static_cast<size_t>((last - first) * out_width));
  for (int64_t c = 0; c < channels; ++c, image += height * width, out += out_height * out_width) {
    for (int64_t y = first; y < last; ++y) {
      for (int64_t x = 0; x < out_width; ++x) {
        const Taps& tap = columns[static_cast<size_t>(x)];
        float sum = 0.0f;
        for (size_t i = 0; i < tap.weights.size(); ++i)
          sum += tap.weights[i] * image[y * width + tap.first + static_cast<int64_t>(i)];
        narrow[static_cast<size_t>((y - first) * out_width + x)] = sum;
      }
    }
    std::fill(out, out + out_height * out_width, 0.0f);
    for (int64_t y = 0; y < out_height; ++y) {
      const Taps& tap = rows[static_cast<size_t>(y)];
      for (size_t i = 0; i < tap.weights.size(); ++i) {
        const float* from =
            narrow.data() + (tap.first + static_cast<int64_t>(i) - first) * out_width;
        for (int64_t x = 0; x < out_width; ++x) out[y * out_width + x] += tap.weights[i] * from[x];
      }
    }
  }
}

}  // namespace fovea::data
