// SPDX-License-Identifier: Apache-2.0
#pragma once
// What all image data sets share: normalisation and augmentation. A format says only how many images there are, their
// labels, and their pixels.

#include "data/image/augment.h"
#include "data/source.h"

namespace fovea::data {

struct ImageOptions : config::Options {
  explicit ImageOptions(double mean_of_pixels = 0.5, double deviation_of_pixels = 0.25) : mean(mean_of_pixels), deviation(deviation_of_pixels) {}
  std::string path;
  double mean, deviation;  // pixel values in [0, 1] become (value - mean) / deviation
  AugmentOptions augment;  // training only
  void describe(config::Fields& f) override;
};

class ImageSource : public Source {
 public:
  Batch make(std::span<const Sample> samples, uint64_t seed) const final;

 protected:
  ImageSource(const ImageOptions& options, Split split) : options_(options), split_(split) {}
  virtual int64_t label(int64_t index) const = 0;
  // [C, H, W], values in [0, 1]
  virtual void pixels(int64_t index, float* out) const = 0;
  // Throws naming `file` and the first label outside [0, classes).
  void check_labels(const std::string& file) const;

 private:
  ImageOptions options_;
  Split split_;
};

// MNIST's IDX files (also Fashion-, K-, EMNIST), plain or gzip: {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz].
std::unique_ptr<Source> make_idx(const ImageOptions& options, Split split);

}  // namespace fovea::data
