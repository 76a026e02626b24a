// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tokenizer: text to token ids and back. Kinds: bytes, characters, and byte-level BPE (own, HF
// tokenizer.json, tiktoken).

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fovea::data {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual int64_t vocab_size() const = 0;
  // Throws naming the offset of a byte or character that the vocabulary lacks.
  virtual std::vector<int64_t> encode(std::string_view text) const = 0;
  // Throws naming an id outside the vocabulary. The pieces of one text may end inside a UTF-8
  // character.
  virtual std::string decode(std::span<const int64_t> ids) const = 0;
  // What load_tokenizer reads.
  virtual std::string to_json() const = 0;
};

// 256 ids, one a byte.
std::unique_ptr<Tokenizer> byte_tokenizer();
// The sorted distinct characters (UTF-8 code points) of `text`. Throws naming the offset of bytes
// that are no UTF-8.
std::unique_ptr<Tokenizer> character_tokenizer(std::string_view text);

// Byte-level BPE learned from `text` (text/bpe.h). Throws when the text has too few repeated pairs
// for the size.
std::unique_ptr<Tokenizer> train_bpe(std::string_view text, int64_t vocab_size);

// Reads what to_json() wrote (tokenizer.json beside train.bin), a tokenizer.json of Hugging Face
// that is byte-level BPE, GPT-2's encoder.json (vocab.bpe beside it), or a .tiktoken file. Throws
// naming the file and what it lacks.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path);

}  // namespace fovea::data
