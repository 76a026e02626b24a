// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the tests of byte pair encoding share: small models, and texts as pieces and tokens.

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/test_util.h"
#include "data/text/bpe.h"

namespace fovea::data {

using Ids = std::vector<int64_t>;

inline std::vector<std::string> pieces(const Splitter& splitter, const std::string& text) {
  std::vector<std::string> found;
  splitter.split(text, [&](std::string_view piece) { found.emplace_back(piece); });
  return found;
}

// A model over bytes in GPT-2's order and the given merges, as bytes.
inline BpeModel model_of(const std::vector<std::pair<std::string, std::string>>& merges) {
  BpeModel model;
  std::map<std::string, int32_t> ids;
  for (const unsigned char b : byte_order()) {
    ids[std::string(1, static_cast<char>(b))] = static_cast<int32_t>(model.tokens.size());
    model.tokens.emplace_back(1, static_cast<char>(b));
  }
  for (const auto& [left, right] : merges) {
    const auto rank = static_cast<int32_t>(model.merges.size());
    const auto [place, fresh] =
        ids.try_emplace(left + right, static_cast<int32_t>(model.tokens.size()));
    if (fresh) model.tokens.push_back(left + right);
    model.merges.push_back({ids.at(left), ids.at(right), place->second, rank});
  }
  return model;
}

inline std::vector<std::string> words(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<std::string> found;
  for (const int64_t id : tokenizer.encode(text)) found.push_back(tokenizer.decode(Ids{id}));
  return found;
}
using Words = std::vector<std::string>;

}  // namespace fovea::data
