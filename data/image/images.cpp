// SPDX-License-Identifier: Apache-2.0
#include "data/image/images.h"

#include "core/parallel.h"

namespace fovea::data {

void ImageOptions::describe(config::Fields& f) {
  f.add("path", path, "folder (or HDF5 file) with the images", config::non_empty());
  f.add("mean", mean, "subtracted from pixel values in [0, 1]: one, or one a channel");
  f.add("deviation", deviation, "what they are then divided by: one, or one a channel",
        config::positive());
  f.section("augment", augment, "random changes of training images");
}

ImageSource::ImageSource(const ImageOptions& options, Split split)
    : options_(options), split_(split) {
  FOVEA_CHECK(!options.path.empty(),
              "images: data.path is not set; it names the folder with the images");
}

void ImageSource::describe(const std::string& name, int64_t channels, int64_t height, int64_t width,
                           int64_t classes) {
  description_.name = name;
  description_.is_tokens = false;
  description_.channels = channels;
  description_.height = height;
  description_.width = width;
  description_.classes = classes;
  const auto check = [&](const char* what, std::vector<double>& values) {
    FOVEA_CHECK(values.size() == 1 || static_cast<int64_t>(values.size()) == channels, "images ",
                options_.path, ": data.", what, " has ", values.size(),
                " numbers; expected 1, or one for each of ", channels, " channels");
    values.resize(static_cast<size_t>(channels), values[0]);
  };
  check("mean", options_.mean);
  check("deviation", options_.deviation);
}

Batch ImageSource::make(std::span<const Sample> samples, uint64_t seed) const {
  const Description& d = description_;
  const auto count = static_cast<int64_t>(samples.size());
  const int64_t area = d.height * d.width, values = d.channels * area;
  const bool training = split_ == Split::train, mixes = training && options_.augment.mixes();
  Batch batch{Tensor::empty({count, d.channels, d.height, d.width}), {}, {}};
  if (mixes)
    batch.soft_targets = Tensor::zeros({count, d.classes});
  else
    batch.targets = Tensor::empty({count}, Dtype::i64);
  parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> partner(mixes ? static_cast<size_t>(values) : 0);
    for (int64_t i = begin; i < end; ++i) {
      const Sample& sample = samples[static_cast<size_t>(i)];
      float* image = batch.inputs.data<float>() + i * values;
      Draw draw(RngKey(seed, "augment", "", sample.ordinal));
      pixels(sample.index, image);
      if (training) augment(image, d.channels, d.height, d.width, options_.augment, draw);
      if (mixes) {
        const int64_t other = draw.below(size());
        pixels(other, partner.data());
        augment(partner.data(), d.channels, d.height, d.width, options_.augment, draw);
        const auto keep = static_cast<float>(
            mix(image, partner.data(), d.channels, d.height, d.width, options_.augment, draw));
        float* target = batch.soft_targets.data<float>() + i * d.classes;
        target[label(sample.index)] += keep;
        target[label(other)] += 1.0f - keep;
      } else {
        batch.targets.data<int64_t>()[i] = label(sample.index);
      }
      for (int64_t c = 0; c < d.channels; ++c) {
        const auto mean = static_cast<float>(options_.mean[static_cast<size_t>(c)]),
                   factor = static_cast<float>(1.0 / options_.deviation[static_cast<size_t>(c)]);
        for (int64_t p = c * area; p < (c + 1) * area; ++p) image[p] = (image[p] - mean) * factor;
      }
    }
  });
  return batch;
}

void ImageSource::check_labels(const std::string& file) const {
  for (int64_t i = 0; i < size(); ++i) {
    const int64_t found = label(i);
    FOVEA_CHECK(found >= 0 && found < description_.classes, file, ": label ", found, " of image ",
                i, " is outside [0, ", description_.classes, ')');
  }
}

}  // namespace fovea::data
