// SPDX-License-Identifier: Apache-2.0
#include "data/text/tokens.h"

#include <algorithm>
#include <cstring>

#include "core/rng.h"

namespace fovea::data {

void TokensOptions::describe(config::Fields& f) {
  f.add(
      "path", path,
      "folder with train.bin, val.bin and, for text, tokenizer.json (fovea data prepare makes one)",
      config::non_empty());
  f.add("context", context, "length of a sample", config::from_to(1, 1 << 24), "tokens");
  f.add("vocab_size", vocab_size,
        "ids are below this; 0: what tokenizer.json or the file's header says",
        config::from_to(0, 1 << 24));
  f.add("separator", separator,
        "id that ends a document, as 50256 of GPT-2; -1: a sample is one document",
        config::from_to(-1, 1 << 24));
}

// ---- files --------------------------------------------------------------------------------------

TokenFile::TokenFile(const std::filesystem::path& path) : file_(path) {
  constexpr int64_t kHeaderBytes = 1024;
  const auto bytes = file_.bytes();
  const auto size = static_cast<int64_t>(bytes.size());
  int32_t header[3] = {};
  if (size > 0) std::memcpy(header, bytes.data(), std::min(bytes.size(), sizeof header));
  FOVEA_CHECK(header[0] != 20240522 && header[0] != 20240328 &&
                  (header[0] < 20240326 || header[0] > 20240327),
              "tokens ", path.string(), ": is a file of llm.c that holds no tokens (magic ",
              header[0], "); expected magic 20240520 or 20240801");
  const bool narrow = header[0] == 20240520, wide = header[0] == 20240801;
  if (narrow || wide) {
    FOVEA_CHECK(size >= kHeaderBytes, "tokens ", path.string(), ": ", size,
                " bytes are less than the header of ", kHeaderBytes, "; the file is cut short");
    FOVEA_CHECK(header[1] == (wide ? 7 : 1), "tokens ", path.string(), ": magic ", header[0],
                " with version ", header[1], "; expected version ", wide ? 7 : 1);
    width_ = wide ? 4 : 2;
    count_ = header[2];
    ids_ = bytes.data() + kHeaderBytes;
    vocab_ = wide ? 128256 : 50257;
    FOVEA_CHECK(size == kHeaderBytes + count_ * width_, "tokens ", path.string(),
                ": the header says ", count_, " ids of ", width_, " bytes, which makes ",
                kHeaderBytes + count_ * width_, " bytes, but the file has ", size);
  } else {
    FOVEA_CHECK(size % 2 == 0, "tokens ", path.string(), ": ", size,
                " bytes are no whole number of uint16 ids; the file is cut short or no token file");
    count_ = size / 2;
    ids_ = bytes.data();
  }
  FOVEA_CHECK(count_ > 0, "tokens ", path.string(), ": holds no tokens");
}

int64_t TokenFile::largest() const {
  const auto maximum = [this](auto id) {
    const auto* ids = reinterpret_cast<const decltype(id)*>(ids_);
    for (int64_t i = 0; i < count_; ++i) id = std::max(id, ids[i]);
    return static_cast<int64_t>(id);
  };
  return width_ == 2 ? maximum(uint16_t{0}) : maximum(uint32_t{0});
}

void write_token_file(const std::filesystem::path& path, std::span<const int64_t> ids) {
  const auto [least, largest] = std::minmax_element(ids.begin(), ids.end());
  const bool wide = !ids.empty() && *largest >= 65536;
  FOVEA_CHECK(ids.empty() || (*least >= 0 && *largest < (int64_t{1} << 32)), "tokens: ids from ",
              *least, " to ", *largest, " do not fit the 32 bits of a token file");
  FOVEA_CHECK(!wide || ids.size() < (size_t{1} << 31), "tokens: ", ids.size(),
              " ids are too many for the header of a token file");
  std::string content;
  if (wide) {
    const int32_t header[256] = {20240801, 7, static_cast<int32_t>(ids.size())};
    content.assign(reinterpret_cast<const char*>(header), sizeof header);
  }
  const size_t width = wide ? 4 : 2, start = content.size();
  content.resize(start + ids.size() * width);
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto id = static_cast<uint32_t>(ids[i]);  // little-endian: the low bytes come first
    std::memcpy(content.data() + start + i * width, &id, width);
  }
  replace_file(path, content);
}

// ---- source -------------------------------------------------------------------------------------

namespace {

class TokensSource final : public Source {
 public:
  TokensSource(const TokensOptions& options, Split split)
      : file_(std::filesystem::path(options.path) /
              (split == Split::train ? "train.bin" : "val.bin")),
        split_(split),
        separator_(options.separator) {
    const std::filesystem::path folder(options.path), vocabulary = folder / "tokenizer.json";
    description_.name = folder.filename().string();
    description_.context = options.context;
    if (std::filesystem::exists(vocabulary)) description_.tokenizer = load_tokenizer(vocabulary);
    description_.vocab_size = options.vocab_size > 0   ? options.vocab_size
                              : description_.tokenizer ? description_.tokenizer->vocab_size()
                              : file_.implied_vocab()  ? *file_.implied_vocab()
                                                       : 0;
    FOVEA_CHECK(description_.vocab_size > 0, "tokens ", options.path,
                ": has neither tokenizer.json nor a header; set data.vocab_size");
    check_ids();
    FOVEA_CHECK(separator_ < description_.vocab_size, "tokens ", options.path, ": separator ",
                separator_, " is outside the vocabulary of ", description_.vocab_size);
    FOVEA_CHECK(file_.size() > options.context, "tokens ", file_.path().string(), ": ",
                file_.size(), " tokens are too few for a context of ", options.context,
                "; a sample needs ", options.context + 1);
  }

  // In training one sample less than fits, so that the offset of an epoch can be anything below
  // `context`.
  int64_t size() const override {
    const int64_t fit = (file_.size() - 1) / context();
    return split_ == Split::train ? std::max<int64_t>(1, fit - 1) : fit;
  }

  Batch make(std::span<const Sample> samples, uint64_t seed) const override {
    const int64_t n = context();
    const Shape shape{static_cast<int64_t>(samples.size()), n};
    const Batch batch{Tensor::empty(shape, Dtype::i64),
                      Tensor::empty(shape, Dtype::i64),
                      {},
                      separator_ >= 0 ? Tensor::empty(shape, Dtype::i32) : Tensor()};
    int32_t* documents = separator_ >= 0 ? batch.documents.data<int32_t>() : nullptr;
    int64_t* inputs = batch.inputs.data<int64_t>();
    int64_t* targets = batch.targets.data<int64_t>();
    const int64_t slack = std::min(n, file_.size() - size() * n);
    for (const Sample& sample : samples) {
      const int64_t phase =
          split_ == Split::train
              ? static_cast<int64_t>(random_below(RngKey(seed, "phase", "", sample.epoch), 0,
                                                  static_cast<uint64_t>(slack)))
              : 0;
      const int64_t start = sample.index * n + phase;
      int32_t document = 0;
      for (int64_t t = 0; t < n; ++t) {
        *inputs++ = file_[start + t];
        *targets++ = file_[start + t + 1];
        if (documents == nullptr) continue;
        *documents++ = document;
        document += file_[start + t] == separator_ ? 1 : 0;
      }
    }
    return batch;
  }

 private:
  int64_t context() const { return description_.context; }
  // Once, before anything is trained on them. Two passes: the first is a maximum that compilers
  // know how to make fast.
  void check_ids() const {
    if (file_.largest() < description_.vocab_size) return;
    int64_t at = 0;
    while (file_[at] < description_.vocab_size) ++at;
    throw Error(concat("tokens ", file_.path().string(), ": id ", file_[at], " at position ", at,
                       " is outside the vocabulary of ", description_.vocab_size));
  }

  TokenFile file_;
  Split split_;
  int64_t separator_;
};

}  // namespace

std::unique_ptr<Source> make_tokens(const TokensOptions& options, Split split) {
  return std::make_unique<TokensSource>(options, split);
}

}  // namespace fovea::data
