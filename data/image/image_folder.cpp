// SPDX-License-Identifier: Apache-2.0
#include <filesystem>

#include "data/image/decode.h"
#include "data/image/images.h"
#include "data/image/resize.h"

namespace fovea::data {

namespace fs = std::filesystem;

void ImageFolderOptions::describe(config::Fields& f) {
  ImageOptions::describe(f);
  f.add("size", size, "height and width of a sample", config::from_to(1, 1 << 14), "pixels");
  f.add("resize", resize,
        "the shorter side becomes this many times `size` before the centre is cut out",
        config::from_to(1, 100));
  f.add("val_fraction", val_fraction, "share held out of a folder that has no train/ and val/",
        {"above 0 and below 1", [](double v) { return v > 0.0 && v < 1.0; }, {}, false});
}

namespace {

std::string lower_extension(const fs::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return extension;
}

std::vector<std::string> classes_of(const fs::path& folder) {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.is_directory() && !entry.path().filename().string().starts_with('.'))
      names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  FOVEA_CHECK(!names.empty(), "image folder ", folder.string(),
              ": has no folders, expected one for each class");
  return names;
}

// Images below a class's folder, in order of their paths.
std::vector<fs::path> images_of(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const std::string extension = lower_extension(entry.path());
    if (extension == ".png" || extension == ".jpg" || extension == ".jpeg")
      files.push_back(entry.path());
    for (const char* other : {".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}) {
      FOVEA_CHECK(extension != other, "image folder: ", entry.path().string(),
                  ": only PNG and JPEG are read; convert it or move it away");
    }
  }
  std::sort(files.begin(), files.end());
  FOVEA_CHECK(!files.empty(), "image folder ", folder.string(), ": holds no .png, .jpg or .jpeg");
  return files;
}

class FolderSource final : public ImageSource {
 public:
  FolderSource(const ImageFolderOptions& options, Split split)
      : ImageSource(options, split), size_(options.size), resize_(options.resize) {
    const fs::path root(options.path);
    FOVEA_CHECK(fs::is_directory(root), "image folder ", root.string(), ": no such folder");
    const bool divided = fs::is_directory(root / "train");
    const std::vector<std::string> classes = classes_of(divided ? root / "train" : root);
    fs::path folder = root;
    if (divided && split == Split::train) folder /= "train";
    if (divided && split == Split::val) folder /= fs::is_directory(root / "val") ? "val" : "test";
    if (divided) {
      FOVEA_CHECK(fs::is_directory(folder), "image folder ", root.string(),
                  ": has train/ but neither val/ nor test/");
      for (const std::string& name : classes_of(folder)) {
        FOVEA_CHECK(std::binary_search(classes.begin(), classes.end(), name), "image folder ",
                    folder.string(), ": class ", name, " is not among those of train/");
      }
    }
    for (size_t c = 0; c < classes.size(); ++c) {
      if (!fs::is_directory(folder / classes[c])) continue;
      const std::vector<fs::path> files = images_of(folder / classes[c]);
      for (size_t i = 0; i < files.size(); ++i) {
        // The n-th image is held out when n f passes a whole number there.
        const auto passed = [&](size_t n) {
          return static_cast<int64_t>(
              std::floor(static_cast<double>(n) * options.val_fraction + 0.5));
        };
        if (!divided && (passed(i + 1) > passed(i)) != (split == Split::val)) continue;
        files_.push_back(files[i]);
        labels_.push_back(static_cast<int64_t>(c));
      }
    }
    FOVEA_CHECK(!files_.empty(), "image folder ", root.string(), ": too few images to hold out ",
                options.val_fraction, " of each class");
    describe(root.filename().string(), 3, size_, size_, static_cast<int64_t>(classes.size()));
  }
  int64_t size() const override { return static_cast<int64_t>(files_.size()); }

 private:
  int64_t label(int64_t index) const override { return labels_[static_cast<size_t>(index)]; }
  // The centre square that, were the shorter side resize * size long, would be `size` wide.
  void pixels(int64_t index, float* out) const override {
    const Rgb rgb = decode_image(files_[static_cast<size_t>(index)]);
    const int64_t area = rgb.height * rgb.width;
    std::vector<float> planes(static_cast<size_t>(3 * area));
    for (int64_t p = 0; p < area; ++p) {
      for (int64_t c = 0; c < 3; ++c)
        planes[static_cast<size_t>(c * area + p)] =
            static_cast<float>(rgb.values[static_cast<size_t>(3 * p + c)]) / 255.0f;
    }
    const double h = static_cast<double>(rgb.height), w = static_cast<double>(rgb.width),
                 side = std::min(h, w) / resize_;
    resize(planes.data(), 3, rgb.height, rgb.width,
           {(h - side) / 2.0, (w - side) / 2.0, side, side}, out, size_, size_);
  }
  int64_t size_;
  double resize_;
  std::vector<fs::path> files_;
  std::vector<int64_t> labels_;
};

}  // namespace

std::unique_ptr<Source> make_image_folder(const ImageFolderOptions& options, Split split) {
  return std::make_unique<FolderSource>(options, split);
}

}  // namespace fovea::data
