// SPDX-License-Identifier: Apache-2.0
#include "core/io/file.h"
#include "data/image/images.h"

namespace fovea::data {
namespace {

constexpr int64_t kPixels = 3 * 32 * 32;

// Records of label bytes (the last one counts), then 1024 bytes each of red, green and blue.
class CifarSource final : public ImageSource {
 public:
  CifarSource(const ImageOptions& options, Split split, const std::vector<std::string>& files,
              int64_t label_bytes, int64_t classes)
      : ImageSource(options, split), record_(label_bytes + kPixels) {
    const std::filesystem::path folder(options.path);
    describe(folder.filename().string(), 3, 32, 32, classes);
    for (const std::string& name : files) {
      FOVEA_CHECK(std::filesystem::is_regular_file(folder / name), "cifar ", folder.string(),
                  ": has no ", name);
      files_.emplace_back(folder / name);
      const auto bytes = static_cast<int64_t>(files_.back().bytes().size());
      FOVEA_CHECK(bytes > 0 && bytes % record_ == 0, "cifar ", (folder / name).string(), ": ",
                  bytes, " bytes are no whole number of records of ", record_,
                  "; the file is cut short or another version");
      ends_.push_back((ends_.empty() ? 0 : ends_.back()) + bytes / record_);
    }
    check_labels(folder.string());
  }
  int64_t size() const override { return ends_.back(); }

 private:
  const uint8_t* record(int64_t index) const {
    const auto file =
        static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), index) - ends_.begin());
    return reinterpret_cast<const uint8_t*>(files_[file].bytes().data()) +
           (index - (file > 0 ? ends_[file - 1] : 0)) * record_;
  }
  int64_t label(int64_t index) const override { return record(index)[record_ - kPixels - 1]; }
  void pixels(int64_t index, float* out) const override {
    const uint8_t* from = record(index) + record_ - kPixels;
    for (int64_t p = 0; p < kPixels; ++p) out[p] = static_cast<float>(from[p]) / 255.0f;
  }
  int64_t record_;
  std::vector<MappedFile> files_;
  std::vector<int64_t> ends_;  // records up to the end of each file
};

}  // namespace

std::unique_ptr<Source> make_cifar10(const ImageOptions& options, Split split) {
  std::vector<std::string> files{"test_batch.bin"};
  if (split == Split::train)
    files = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin",
             "data_batch_5.bin"};
  return std::make_unique<CifarSource>(options, split, files, 1, 10);
}

std::unique_ptr<Source> make_cifar100(const ImageOptions& options, Split split) {
  return std::make_unique<CifarSource>(
      options, split, std::vector<std::string>{split == Split::train ? "train.bin" : "test.bin"}, 2,
      100);
}

}  // namespace fovea::data
