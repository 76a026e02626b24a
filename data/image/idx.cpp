// SPDX-License-Identifier: Apache-2.0
#include "data/gzip.h"
#include "data/image/images.h"

namespace fovea::data {
namespace {

// An IDX file of unsigned bytes (big-endian: 00 00 08 ndim, ndim sizes of 32 bits, data).
struct Idx {
  std::string file;
  std::string bytes;
  std::vector<int64_t> sizes;
  const uint8_t* values() const {
    return reinterpret_cast<const uint8_t*>(bytes.data()) + 4 + 4 * sizes.size();
  }
};

Idx read_idx(const std::filesystem::path& path, size_t rank) {
  Idx idx{path.string(), read_maybe_gzip(path), {}};
  const auto byte = [&](size_t i) {
    return static_cast<int64_t>(static_cast<unsigned char>(idx.bytes[i]));
  };
  FOVEA_CHECK(idx.bytes.size() >= 4 + 4 * rank && byte(0) == 0 && byte(1) == 0 && byte(2) == 8 &&
                  byte(3) == static_cast<int64_t>(rank),
              "idx ", idx.file, ": does not start with 00 00 08 0", rank, "; no IDX file of ", rank,
              " axes of bytes");
  const auto found = static_cast<int64_t>(idx.bytes.size()) - 4 - 4 * static_cast<int64_t>(rank);
  int64_t expected = 1;
  for (size_t axis = 0; axis < rank; ++axis) {
    const size_t at = 4 + 4 * axis;
    const int64_t size =
        (byte(at) << 24) | (byte(at + 1) << 16) | (byte(at + 2) << 8) | byte(at + 3);
    FOVEA_CHECK(size >= 1 && size < (int64_t{1} << 31), "idx ", idx.file, ": axis ", axis,
                " has size ", size);
    idx.sizes.push_back(size);
    FOVEA_CHECK(!__builtin_mul_overflow(expected, size, &expected), "idx ", idx.file,
                ": the sizes in the header pass 64 bits, the file holds ", found, " values");
  }
  FOVEA_CHECK(found == expected, "idx ", idx.file, ": the header promises ", expected,
              " values, the file holds ", found);
  return idx;
}

std::filesystem::path find(const std::filesystem::path& folder, const std::string& split,
                           const std::string& what, int rank) {
  for (const std::string separator : {"-", "."}) {
    for (const std::string suffix : {"", ".gz"}) {
      std::filesystem::path path = folder / (split + "-" + what + separator + "idx" +
                                             std::to_string(rank) + "-ubyte" + suffix);
      if (std::filesystem::exists(path)) return path;
    }
  }
  throw Error(concat("idx ", folder.string(), ": has no ", split, "-", what, "-idx", rank,
                     "-ubyte (plain or .gz)"));
}

class IdxSource final : public ImageSource {
 public:
  IdxSource(const ImageOptions& options, Split split) : ImageSource(options, split) {
    const std::filesystem::path folder(options.path);
    const std::string part = split == Split::train ? "train" : "t10k";
    images_ = read_idx(find(folder, part, "images", 3), 3);
    labels_ = read_idx(find(folder, part, "labels", 1), 1);
    FOVEA_CHECK(images_.sizes[0] == labels_.sizes[0], "idx ", images_.file, ": ", images_.sizes[0],
                " images, but ", labels_.file, " has ", labels_.sizes[0], " labels");
    int64_t classes = 10;
    // EMNIST's larger splits: the labels say how many classes there are.
    for (int64_t i = 0; i < labels_.sizes[0]; ++i)
      classes = std::max<int64_t>(classes, labels_.values()[i] + 1);
    describe(folder.filename().string(), 1, images_.sizes[1], images_.sizes[2], classes);
    FOVEA_CHECK(classes <= 62, labels_.file, ": label ", classes - 1,
                " is outside the 62 classes that these data sets have");
  }
  int64_t size() const override { return images_.sizes[0]; }

 private:
  int64_t label(int64_t index) const override { return labels_.values()[index]; }
  void pixels(int64_t index, float* out) const override {
    const int64_t area = description_.height * description_.width;
    const uint8_t* from = images_.values() + index * area;
    for (int64_t p = 0; p < area; ++p) out[p] = static_cast<float>(from[p]) / 255.0f;
  }
  Idx images_, labels_;
};

}  // namespace

std::unique_ptr<Source> make_idx(const ImageOptions& options, Split split) {
  return std::make_unique<IdxSource>(options, split);
}

}  // namespace fovea::data
