// SPDX-License-Identifier: Apache-2.0
// The tokenizers without merges: bytes and characters.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "data/text/kinds.h"
#include "data/text/utf8.h"
#include "data/tokenizer.h"

namespace fovea::data {
namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  int64_t vocab_size() const override { return 256; }
  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(std::span<const int64_t> ids) const override {
    std::string text;
    for (const int64_t id : ids) {
      FOVEA_CHECK(id >= 0 && id < 256, "tokenizer: id ", id, " is no byte");
      text += static_cast<char>(id);
    }
    return text;
  }
  std::string to_json() const override { return nlohmann::json{{"kind", "bytes"}}.dump() + "\n"; }
};

class CharacterTokenizer final : public Tokenizer {
 public:
  explicit CharacterTokenizer(std::vector<std::string> characters)
      : characters_(std::move(characters)) {
    for (size_t i = 0; i < characters_.size(); ++i) {
      const std::string& c = characters_[i];
      FOVEA_CHECK(!c.empty() && strict_utf8_length(c, 0) == c.size(), "tokenizer: entry ", i,
                  " of the characters is \"", c, "\"; expected one character");
      ids_[c] = static_cast<int64_t>(i);
    }
    FOVEA_CHECK(!characters_.empty(),
                "tokenizer: a vocabulary of no characters; is the text empty?");
    FOVEA_CHECK(ids_.size() == characters_.size(),
                "tokenizer: a character stands twice in the vocabulary");
  }
  int64_t vocab_size() const override { return static_cast<int64_t>(characters_.size()); }
  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> ids;
    for (size_t at = 0; at < text.size();) {
      const size_t length = utf8_length(text, at);
      const auto found = ids_.find(text.substr(at, length));
      FOVEA_CHECK(found != ids_.end(), "tokenizer: character \"", text.substr(at, length),
                  "\" at byte ", at, " is not among the ", characters_.size(),
                  " of the vocabulary");
      ids.push_back(found->second);
      at += length;
    }
    return ids;
  }
  std::string decode(std::span<const int64_t> ids) const override {
    std::string text;
    for (const int64_t id : ids) {
      FOVEA_CHECK(id >= 0 && id < vocab_size(), "tokenizer: id ", id, " of a vocabulary of ",
                  vocab_size());
      text += characters_[static_cast<size_t>(id)];
    }
    return text;
  }
  std::string to_json() const override {
    return nlohmann::json{{"kind", "characters"}, {"characters", characters_}}.dump(1) + "\n";
  }

 private:
  std::vector<std::string> characters_;
  std::map<std::string, int64_t, std::less<>> ids_;
};

}  // namespace

std::unique_ptr<Tokenizer> byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

std::unique_ptr<Tokenizer> character_tokenizer(std::string_view text) {
  std::map<std::string, bool, std::less<>> seen;
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    const std::string_view character = text.substr(at, length);
    if (!seen.contains(character)) seen.emplace(character, true);
    at += length;
  }
  std::vector<std::string> characters;
  characters.reserve(seen.size());
  for (const auto& [character, unused] : seen) characters.push_back(character);
  return std::make_unique<CharacterTokenizer>(std::move(characters));
}

std::unique_ptr<Tokenizer> character_tokenizer(std::vector<std::string> characters) {
  return std::make_unique<CharacterTokenizer>(std::move(characters));
}

}  // namespace fovea::data
