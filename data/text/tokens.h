// SPDX-License-Identifier: Apache-2.0
#pragma once
// Token files: a folder with train.bin and val.bin (and tokenizer.json when the ids are text).
// Three layouts are told apart by their first bytes: raw uint16 (nanoGPT); 256 int32 of header,
// then uint16 (llm.c, magic 20240520) or uint32 (magic 20240801). Files are mapped, not read.

#include <optional>

#include "core/io/file.h"
#include "data/source.h"

namespace fovea::data {

struct TokensOptions : config::Options {
  std::string path = "datasets/kjv";
  int64_t context = 256;
  int64_t vocab_size = 0;
  int64_t separator = -1;  // an id that ends a document; -1: none, a sample is one document
  void describe(config::Fields& f) override;
};

// Ids of one file, by position.
class TokenFile {
 public:
  // Throws naming the file when its size does not fit its header, or it is empty.
  explicit TokenFile(const std::filesystem::path& path);
  int64_t size() const { return count_; }
  int64_t operator[](int64_t i) const {
    return width_ == 2 ? reinterpret_cast<const uint16_t*>(ids_)[i]
                       : reinterpret_cast<const uint32_t*>(ids_)[i];
  }
  // The largest id; reads the whole file.
  int64_t largest() const;
  // The vocabulary that the header implies, if it has one.
  std::optional<int64_t> implied_vocab() const { return vocab_; }
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  MappedFile file_;
  const std::byte* ids_ = nullptr;
  int64_t width_ = 2, count_ = 0;
  std::optional<int64_t> vocab_;
};

// Writes raw uint16 ids, or, when one does not fit, uint32 ids after a header (magic 20240801).
void write_token_file(const std::filesystem::path& path, std::span<const int64_t> ids);

// A sample is `context` consecutive tokens and, as targets, the ones after each (also after a
// document's last). An epoch tiles the
// file from an offset that changes with the epoch; the val split starts at 0.
std::unique_ptr<Source> make_tokens(const TokensOptions& options, Split split);

}  // namespace fovea::data
