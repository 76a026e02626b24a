// SPDX-License-Identifier: Apache-2.0
#include "data/image/images.h"

#include "core/parallel.h"

namespace fovea::data {

void ImageOptions::describe(config::Fields& f) {
  f.add("path", path, "folder with the files", config::non_empty());
  f.add("mean", mean, "subtracted from pixel values in [0, 1]");
  f.add("deviation", deviation, "what they are then divided by", config::positive());
  f.section("augment", augment, "random changes of training images");
}

Batch ImageSource::make(std::span<const Sample> samples, uint64_t seed) const {
  const Description& d = description_;
  const auto count = static_cast<int64_t>(samples.size());
  const Batch batch{Tensor::empty({count, d.channels, d.height, d.width}), Tensor::empty({count}, Dtype::i64), {}};
  const int64_t area = d.height * d.width;
  const auto mean = static_cast<float>(options_.mean), factor = static_cast<float>(1.0 / options_.deviation);
  parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Sample& sample = samples[static_cast<size_t>(i)];
      float* image = batch.inputs.data<float>() + i * d.channels * area;
      pixels(sample.index, image);
      if (split_ == Split::train) augment(image, d.channels, d.height, d.width, options_.augment, RngKey(seed, "augment", "", sample.ordinal));
      for (int64_t p = 0; p < d.channels * area; ++p) image[p] = (image[p] - mean) * factor;
      batch.targets.data<int64_t>()[i] = label(sample.index);
    }
  });
  return batch;
}

void ImageSource::check_labels(const std::string& file) const {
  for (int64_t i = 0; i < size(); ++i) {
    const int64_t found = label(i);
    FOVEA_CHECK(found >= 0 && found < description_.classes, file, ": label ", found, " of image ", i, " is outside [0, ", description_.classes, ')');
  }
}

}  // namespace fovea::data
