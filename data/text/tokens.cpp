// SPDX-License-Identifier: Apache-2.0
#include "data/text/tokens.h"

#include <algorithm>
#include <cstring>

#include "core/rng.h"

namespace fovea::data {

void TokensOptions::describe(config::Fields& f) {
  f.add("path", path, "folder with train.bin, val.bin and, for text, tokenizer.json (fovea data prepare makes one)", config::non_empty());
  f.add("context", context, "length of a sample", config::at_least(1), "tokens");
  f.add("vocab_size", vocab_size, "ids are below this; 0: what tokenizer.json or the file's header says", config::at_least(0));
}

// ---- files -------------------------------------------------------------------------------------------------------

TokenFile::TokenFile(const std::filesystem::path& path) : file_(path) {
  constexpr int64_t kHeaderBytes = 1024;
  const auto bytes = file_.bytes();
  const auto size = static_cast<int64_t>(bytes.size());
  int32_t header[3] = {};
  if (size >= kHeaderBytes) std::memcpy(header, bytes.data(), sizeof header);
  const bool narrow = header[0] == 20240520 && header[1] == 1, wide = header[0] == 20240801 && header[1] == 7;
  if (narrow || wide) {
    width_ = wide ? 4 : 2;
    count_ = header[2];
    ids_ = bytes.data() + kHeaderBytes;
    vocab_ = wide ? 128256 : 50257;
    FOVEA_CHECK(size == kHeaderBytes + count_ * width_, "tokens ", path.string(), ": the header says ", count_, " ids of ", width_,
                " bytes, which makes ", kHeaderBytes + count_ * width_, " bytes, but the file has ", size);
  } else {
    FOVEA_CHECK(size % 2 == 0, "tokens ", path.string(), ": ", size, " bytes are no whole number of uint16 ids; the file is cut short or no token file");
    count_ = size / 2;
    ids_ = bytes.data();
  }
  FOVEA_CHECK(count_ > 0, "tokens ", path.string(), ": holds no tokens");
}

void write_token_file(const std::filesystem::path& path, std::span<const int64_t> ids) {
  const auto [least, largest] = std::minmax_element(ids.begin(), ids.end());
  const bool wide = !ids.empty() && *largest >= 65536;
  FOVEA_CHECK(ids.empty() || (*least >= 0 && *largest < (int64_t{1} << 32)), "tokens: ids from ", *least, " to ", *largest,
              " do not fit the 32 bits of a token file");
  FOVEA_CHECK(!wide || ids.size() < (size_t{1} << 31), "tokens: ", ids.size(), " ids are too many for the header of a token file");
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

// ---- source ------------------------------------------------------------------------------------------------------

namespace {

class TokensSource final : public Source {
 public:
  TokensSource(const TokensOptions& options, Split split)
      : file_(std::filesystem::path(options.path) / (split == Split::train ? "train.bin" : "val.bin")), split_(split) {
    const std::filesystem::path folder(options.path), vocabulary = folder / "tokenizer.json";
    description_.name = folder.filename().string();
    description_.context = options.context;
    if (std::filesystem::exists(vocabulary)) description_.tokenizer = load_tokenizer(vocabulary);
    description_.vocab_size = options.vocab_size > 0       ? options.vocab_size
                              : description_.tokenizer     ? description_.tokenizer->vocab_size()
                              : file_.implied_vocab()      ? *file_.implied_vocab()
                                                           : 0;
    FOVEA_CHECK(description_.vocab_size > 0, "tokens ", options.path, ": has neither tokenizer.json nor a header; set data.vocab_size");
    FOVEA_CHECK(file_.size() > options.context, "tokens ", file_.path().string(), ": ", file_.size(), " tokens are too few for a context of ",
                options.context, "; a sample needs ", options.context + 1);
  }

  // In training one sample less than fits, so that the offset of an epoch can be anything below `context`.
  int64_t size() const override {
    const int64_t fit = (file_.size() - 1) / context();
    return split_ == Split::train ? std::max<int64_t>(1, fit - 1) : fit;
  }

  Batch make(std::span<const Sample> samples, uint64_t seed) const override {
    const int64_t n = context();
    const Batch batch{Tensor::empty({static_cast<int64_t>(samples.size()), n}, Dtype::i64), Tensor::empty({static_cast<int64_t>(samples.size()), n}, Dtype::i64), {}};
    int64_t* inputs = batch.inputs.data<int64_t>();
    int64_t* targets = batch.targets.data<int64_t>();
    const int64_t slack = std::min(n, file_.size() - size() * n);
    for (const Sample& sample : samples) {
      const int64_t phase = split_ == Split::train ? static_cast<int64_t>(random_below(RngKey(seed, "phase", "", sample.epoch), 0, static_cast<uint64_t>(slack))) : 0;
      const int64_t start = sample.index * n + phase;
      int64_t id = checked(start);
      for (int64_t t = 0; t < n; ++t) {
        *inputs++ = id;
        id = checked(start + t + 1);
        *targets++ = id;
      }
    }
    return batch;
  }

 private:
  int64_t context() const { return description_.context; }
  int64_t checked(int64_t at) const {
    const int64_t id = file_[at];
    FOVEA_CHECK(id < description_.vocab_size, "tokens ", file_.path().string(), ": id ", id, " at position ", at, " is outside the vocabulary of ",
                description_.vocab_size);
    return id;
  }

  TokenFile file_;
  Split split_;
};

}  // namespace

std::unique_ptr<Source> make_tokens(const TokensOptions& options, Split split) { return std::make_unique<TokensSource>(options, split); }

}  // namespace fovea::data
