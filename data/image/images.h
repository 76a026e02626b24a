// SPDX-License-Identifier: Apache-2.0
#pragma once
// What all image data sets share: normalisation and augmentation. A format says only how many
// images there are, their labels, and their pixels.

#include "data/image/augment.h"
#include "data/source.h"

namespace fovea::data {

struct ImageOptions : config::Options {
  explicit ImageOptions(std::vector<double> means = {0.5}, std::vector<double> deviations = {0.25})
      : mean(std::move(means)), deviation(std::move(deviations)) {}
  std::string path;
  std::vector<double> mean, deviation;  // pixel values in [0, 1] become (value - mean) / deviation:
                                        // one of each, or one a channel
  AugmentOptions augment;               // training only
  void describe(config::Fields& f) override;
};

class ImageSource : public Source {
 public:
  // With mixup or cutmix, training batches have soft targets instead of labels; the image mixed in
  // is drawn from the whole set.
  Batch make(std::span<const Sample> samples, uint64_t seed) const final;

 protected:
  // Throws when no path is set.
  ImageSource(const ImageOptions& options, Split split);
  // What every format knows. Throws when mean or deviation do not fit the channels.
  void describe(const std::string& name, int64_t channels, int64_t height, int64_t width,
                int64_t classes);
  virtual int64_t label(int64_t index) const = 0;
  // [C, H, W], values in [0, 1]
  virtual void pixels(int64_t index, float* out) const = 0;
  // Throws naming `file` and the first label outside [0, classes).
  void check_labels(const std::string& file) const;

 private:
  ImageOptions options_;
  Split split_;
};

// MNIST's IDX files (also Fashion-, K-, EMNIST), plain or gzip:
// {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz].
std::unique_ptr<Source> make_idx(const ImageOptions& options, Split split);

// The binary versions: data_batch_{1..5}.bin and test_batch.bin; train.bin and test.bin (fine
// labels).
std::unique_ptr<Source> make_cifar10(const ImageOptions& options, Split split);
std::unique_ptr<Source> make_cifar100(const ImageOptions& options, Split split);

struct ImageFolderOptions : ImageOptions {
  ImageFolderOptions()
      : ImageOptions({0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}) {}  // ImageNet's
  int64_t size = 224;         // height and width of a sample
  double resize = 1.15;       // the shorter side becomes resize * size before the centre is cut out
  double val_fraction = 0.1;  // of a folder without train/ and val/
  void describe(config::Fields& f) override;
};
// PNG and JPEG files at PATH/{train,val}/CLASS/**, or PATH/CLASS/**, of which a part is then held
// out. Classes are numbered in byte order of their names. Files are decoded when they are drawn.
std::unique_ptr<Source> make_image_folder(const ImageFolderOptions& options, Split split);

}  // namespace fovea::data
