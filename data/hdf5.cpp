// SPDX-License-Identifier: Apache-2.0
#include "data/hdf5.h"

#include <charconv>
#include <cmath>
#include <limits>

#include "core/io/hdf5.h"

namespace fovea::data {

void Hdf5Options::describe(config::Fields& f) {
  ImageOptions::describe(f);
  f.add("vocab_size", vocab_size, "of sequences; 0: the file's attribute vocab_size",
        config::from_to(0, 1 << 24));
}

namespace {

using Reader = std::unique_ptr<Hdf5Reader>;

constexpr int64_t kMostClasses = int64_t{1} << 20;
constexpr int64_t kMostTokens = int64_t{1} << 24;  // in a vocabulary

// The attribute vocab_size of the whole file.
int64_t stored_vocab(const Hdf5Reader& file) {
  const std::string text = file.attribute("/", "vocab_size").value_or("");
  FOVEA_CHECK(!text.empty(), "hdf5 ", file.path(),
              ": has no attribute vocab_size; set data.vocab_size");
  int64_t value = 0;
  const auto [rest, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  FOVEA_CHECK(code == std::errc{} && rest == text.data() + text.size() && value >= 1 &&
                  value <= kMostTokens,
              "hdf5 ", file.path(), ": attribute vocab_size is \"", text,
              "\"; expected an integer from 1 to ", kMostTokens);
  return value;
}

class Hdf5Images final : public ImageSource {
 public:
  Hdf5Images(const Hdf5Options& options, Split split, Reader file, const std::string& group)
      : ImageSource(options, split), file_(std::move(file)), images_(group + "/images") {
    const std::string where = concat("hdf5 ", options.path, ": ", group);
    const Shape shape = file_->shape(images_);
    FOVEA_CHECK((shape.rank() == 3 || shape.rank() == 4) && shape.numel() >= 1, where,
                "/images is ", shape, "; expected [N, C, H, W] or [N, H, W]");
    const Dtype dtype = file_->dtype(images_);
    FOVEA_CHECK(dtype == Dtype::u8 || is_floating(dtype), where, "/images holds ", dtype,
                "; expected u8, or floats in [0, 1]");
    labels_ = labels(group);
    FOVEA_CHECK(static_cast<int64_t>(labels_.size()) == shape[0], where, " has ", shape[0],
                " images but ", labels_.size(), " labels");
    // The training labels say how many classes there are.
    int64_t classes = 0;
    for (int64_t l : group == "train" ? labels_ : labels("train"))
      classes = std::max(classes, l + 1);
    describe(std::filesystem::path(options.path).stem().string(), shape.rank() == 4 ? shape[1] : 1,
             shape[-2], shape[-1], classes);
    check_labels(where + "/labels");
  }
  int64_t size() const override { return static_cast<int64_t>(labels_.size()); }

 private:
  std::vector<int64_t> labels(const std::string& group) const {
    const std::string name = group + "/labels", where = concat("hdf5 ", file_->path(), ": ", name);
    FOVEA_CHECK(file_->has(name), "hdf5 ", file_->path(), ": ", group, " has images but no labels");
    const Dtype dtype = file_->dtype(name);
    FOVEA_CHECK(!is_floating(dtype), where, " holds ", dtype, "; expected integers");
    std::vector<int64_t> values = file_->read(name).to_vector<int64_t>();
    for (size_t i = 0; i < values.size(); ++i) {
      FOVEA_CHECK(values[i] >= 0 && values[i] < kMostClasses, where, ": label ", values[i],
                  " of image ", i, " is outside [0, ", kMostClasses, ')');
    }
    return values;
  }
  int64_t label(int64_t index) const override { return labels_[static_cast<size_t>(index)]; }
  void pixels(int64_t index, float* out) const override {
    const Tensor image = file_->read_rows(images_, index, index + 1);
    const std::vector<float> values = image.to_vector<float>();
    const float scale = image.dtype() == Dtype::u8 ? 1.0f / 255.0f : 1.0f;
    for (size_t p = 0; p < values.size(); ++p) {
      FOVEA_CHECK(std::isfinite(values[p]), "hdf5 ", file_->path(), ": ", images_, " row ", index,
                  " holds ", values[p], " at ", p);
      out[p] = values[p] * scale;
    }
  }
  Reader file_;
  std::string images_;
  std::vector<int64_t> labels_;
};

class Hdf5Sequences final : public Source {
 public:
  Hdf5Sequences(const Hdf5Options& options, Reader file, const std::string& group, bool paired)
      : file_(std::move(file)),
        inputs_(group + (paired ? "/inputs" : "/tokens")),
        targets_(paired ? group + "/targets" : ""),
        documents_(file_->has(group + "/documents") ? group + "/documents" : ""),
        where_(concat("hdf5 ", options.path, ": ")) {
    const Shape shape = file_->shape(inputs_);
    FOVEA_CHECK(shape.rank() == 2 && shape[0] >= 1 && shape[1] >= (paired ? 1 : 2), where_, inputs_,
                " is ", shape, "; expected ", paired ? "[N, T]" : "[N, T + 1]");
    if (paired) {
      FOVEA_CHECK(file_->has(targets_), where_, group, " has inputs but no targets");
      FOVEA_CHECK(file_->shape(targets_) == shape, where_, inputs_, " is ", shape, " but ",
                  targets_, " is ", file_->shape(targets_));
    }
    const Shape of_inputs{shape[0], shape[1] - (paired ? 0 : 1)};
    FOVEA_CHECK(documents_.empty() || file_->shape(documents_) == of_inputs, where_, documents_,
                " is ", file_->shape(documents_), "; expected ", of_inputs);
    for (const std::string& name : {inputs_, targets_, documents_}) {
      FOVEA_CHECK(name.empty() || !is_floating(file_->dtype(name)), where_, name, " holds ",
                  file_->dtype(name), "; expected integers");
    }
    rows_ = shape[0];
    description_.name = std::filesystem::path(options.path).stem().string();
    description_.context = shape[1] - (paired ? 0 : 1);
    description_.vocab_size = options.vocab_size > 0 ? options.vocab_size : stored_vocab(*file_);
  }
  int64_t size() const override { return rows_; }

  Batch make(std::span<const Sample> samples, uint64_t) const override {
    const int64_t count = static_cast<int64_t>(samples.size()), n = description_.context;
    const Batch batch{Tensor::empty({count, n}, Dtype::i64),
                      Tensor::empty({count, n}, Dtype::i64),
                      {},
                      documents_.empty() ? Tensor() : Tensor::empty({count, n}, Dtype::i32)};
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = samples[static_cast<size_t>(i)].index;
      const std::vector<int64_t> in = read(inputs_, row, 0),
                                 out = targets_.empty()
                                           ? std::vector<int64_t>(in.begin() + 1, in.end())
                                           : read(targets_, row, kIgnore);
      std::copy(in.begin(), in.begin() + n, batch.inputs.data<int64_t>() + i * n);
      std::copy(out.begin(), out.end(), batch.targets.data<int64_t>() + i * n);
      if (!documents_.empty())
        read_documents(row, batch.targets.data<int64_t>() + i * n,
                       batch.documents.data<int32_t>() + i * n);
    }
    return batch;
  }

 private:
  void read_documents(int64_t row, int64_t* targets, int32_t* out) const {
    for (const int64_t id : file_->read_rows(documents_, row, row + 1).to_vector<int64_t>()) {
      FOVEA_CHECK(id >= -1 && id <= std::numeric_limits<int32_t>::max(), where_, documents_,
                  " row ", row, " holds ", id, "; expected a number of a document, or -1");
      if (id < 0) *targets = kIgnore;
      ++targets;
      *out++ = static_cast<int32_t>(id);
    }
  }
  // One row, every id below the vocabulary and not below `least` (which alone may be negative).
  std::vector<int64_t> read(const std::string& name, int64_t row, int64_t least) const {
    std::vector<int64_t> ids = file_->read_rows(name, row, row + 1).to_vector<int64_t>();
    for (size_t t = 0; t < ids.size(); ++t) {
      FOVEA_CHECK(ids[t] < description_.vocab_size && (ids[t] >= 0 || ids[t] == least), where_,
                  name, " row ", row, " holds id ", ids[t], " at ", t,
                  ", outside the vocabulary of ", description_.vocab_size);
    }
    return ids;
  }
  Reader file_;
  std::string inputs_, targets_, documents_, where_;
  int64_t rows_ = 0;
};

}  // namespace

std::unique_ptr<Source> make_hdf5(const Hdf5Options& options, Split split) {
  FOVEA_CHECK(!options.path.empty(), "hdf5: data.path is not set; it names the file");
  auto file = std::make_unique<Hdf5Reader>(options.path);
  const std::string group = split == Split::train ? "train" : "val";
  FOVEA_CHECK(file->has(group), "hdf5 ", options.path, ": has no group ", group);
  if (file->has(group + "/images"))
    return std::make_unique<Hdf5Images>(options, split, std::move(file), group);
  const bool paired = file->has(group + "/inputs");
  FOVEA_CHECK(paired || file->has(group + "/tokens"), "hdf5 ", options.path, ": group ", group,
              " holds none of images, tokens and inputs");
  return std::make_unique<Hdf5Sequences>(options, std::move(file), group, paired);
}

}  // namespace fovea::data
