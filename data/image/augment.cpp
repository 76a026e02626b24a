// SPDX-License-Identifier: Apache-2.0
#include "data/image/augment.h"

#include "data/image/randaugment.h"
#include "data/image/resize.h"

namespace fovea::data {

void AugmentOptions::describe(config::Fields& f) {
  f.add("crop_area", crop_area,
        "crop at least this share of the area and stretch it to the whole; 1: no crop",
        {"above 0, at most 1", [](double v) { return v > 0.0 && v <= 1.0; }, {}, false});
  f.add("flip", flip, "mirror left and right half of the time");
  f.add("crop_padding", crop_padding, "shift by up to this many pixels each way",
        config::from_to(0, 1 << 14), "pixels");
  f.add("randaugment_ops", randaugment_ops, "RandAugment: random operations on an image",
        config::from_to(0, 100));
  f.add("randaugment_magnitude", randaugment_magnitude, "RandAugment: their strength",
        {"from 0 to 10", [](double v) { return v >= 0.0 && v <= 10.0; }, {}, false});
  f.add("erase", erase, "probability that a random rectangle becomes noise", config::fraction());
  f.add("mixup", mixup, "alpha of mixup; 0: none", config::between(0.0, 5.0));
  f.add("cutmix", cutmix, "alpha of cutmix; 0: none", config::between(0.0, 5.0));
}

namespace {

struct Image {
  float* values;
  int64_t channels, height, width;
  float& at(int64_t c, int64_t y, int64_t x) const { return values[(c * height + y) * width + x]; }
  int64_t size() const { return channels * height * width; }
};

void resized_crop(const Image& image, double least_area, Draw& draw) {
  const auto h = static_cast<double>(image.height), w = static_cast<double>(image.width);
  const double area = draw.uniform(least_area, 1.0) * h * w;
  const double aspect = std::exp(draw.uniform(-1.0, 1.0) * std::log(4.0 / 3.0)) * w / h;
  const double crop_w = std::min(w, std::sqrt(area * aspect)),
               crop_h = std::min(h, std::sqrt(area / aspect));
  const Region region{draw.uniform(0.0, h - crop_h), draw.uniform(0.0, w - crop_w), crop_h, crop_w};
  const std::vector<float> before(image.values, image.values + image.size());
  resize(before.data(), image.channels, image.height, image.width, region, image.values,
         image.height, image.width);
}

void shift(const Image& image, int64_t dy, int64_t dx) {
  const std::vector<float> before(image.values, image.values + image.size());
  const Image source{const_cast<float*>(before.data()), image.channels, image.height, image.width};
  for (int64_t c = 0; c < image.channels; ++c) {
    for (int64_t y = 0; y < image.height; ++y) {
      for (int64_t x = 0; x < image.width; ++x) {
        const bool inside =
            y + dy >= 0 && y + dy < image.height && x + dx >= 0 && x + dx < image.width;
        image.at(c, y, x) = inside ? source.at(c, y + dy, x + dx) : 0.0f;
      }
    }
  }
}

// A rectangle of 2 to 33 % of the area, aspect 0.3 to 3.3, of uniform noise
void erase_rectangle(const Image& image, Draw& draw) {
  const double area = draw.uniform(0.02, 0.33) * static_cast<double>(image.height * image.width);
  const double aspect = std::exp(draw.uniform(std::log(0.3), std::log(3.3)));
  const int64_t h = std::clamp(static_cast<int64_t>(std::lround(std::sqrt(area * aspect))),
                               int64_t{1}, image.height);
  const int64_t w = std::clamp(static_cast<int64_t>(std::lround(std::sqrt(area / aspect))),
                               int64_t{1}, image.width);
  const int64_t top = draw.below(image.height - h + 1), left = draw.below(image.width - w + 1);
  for (int64_t c = 0; c < image.channels; ++c) {
    for (int64_t y = top; y < top + h; ++y) {
      for (int64_t x = left; x < left + w; ++x)
        image.at(c, y, x) = static_cast<float>(draw.uniform());
    }
  }
}

}  // namespace

void augment(float* values, int64_t channels, int64_t height, int64_t width,
             const AugmentOptions& options, Draw& draw) {
  const Image image{values, channels, height, width};
  if (options.crop_area < 1.0) resized_crop(image, options.crop_area, draw);
  if (options.flip && draw.coin(0.5)) {
    for (int64_t row = 0; row < channels * height; ++row)
      std::reverse(values + row * width, values + (row + 1) * width);
  }
  if (options.crop_padding > 0) {
    const int64_t span = 2 * options.crop_padding + 1, dy = draw.below(span) - options.crop_padding;
    shift(image, dy, draw.below(span) - options.crop_padding);
  }
  for (int64_t op = 0; op < options.randaugment_ops; ++op)
    randaugment(values, channels, height, width, options.randaugment_magnitude / 10.0, draw);
  if (options.erase > 0.0 && draw.coin(options.erase)) erase_rectangle(image, draw);
}

double mix(float* image, const float* other, int64_t channels, int64_t height, int64_t width,
           const AugmentOptions& options, Draw& draw) {
  const bool cut = options.cutmix > 0.0 && (options.mixup <= 0.0 || draw.coin(0.5));
  const double keep = draw.beta(cut ? options.cutmix : options.mixup);
  if (!cut) {
    const auto share = static_cast<float>(keep);
    for (int64_t i = 0; i < channels * height * width; ++i)
      image[i] = share * image[i] + (1.0f - share) * other[i];
    return keep;
  }
  // A rectangle of share 1 - keep about a random centre, clipped: its true area counts.
  const double side = std::sqrt(1.0 - keep);
  const auto span = [&](int64_t size) {
    const double centre = draw.uniform(0.0, static_cast<double>(size)),
                 half = side * static_cast<double>(size) / 2.0;
    return std::make_pair(std::max<int64_t>(0, std::lround(centre - half)),
                          std::min<int64_t>(size, std::lround(centre + half)));
  };
  const auto [top, bottom] = span(height);
  const auto [left, right] = span(width);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t y = top; y < bottom; ++y) {
      for (int64_t x = left; x < right; ++x)
        image[(c * height + y) * width + x] = other[(c * height + y) * width + x];
    }
  }
  return 1.0 -
         static_cast<double>((bottom - top) * (right - left)) / static_cast<double>(height * width);
}

}  // namespace fovea::data
