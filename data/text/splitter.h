// SPDX-License-Identifier: Apache-2.0
#pragma once
// Cuts a text into pieces with a regular expression (PCRE2, compiled to machine code, Unicode
// classes): what byte-level BPE does before it merges inside each piece.

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fovea::data {

// GPT-2's pre-split: contractions, an optional space before letters, numbers or other signs, and
// runs of whitespace.
inline constexpr std::string_view kGpt2Split =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

class Splitter {
 public:
  // Patterns are applied in turn, each to the pieces of the one before. Throws naming a pattern
  // that does not compile.
  explicit Splitter(std::vector<std::string> patterns);
  ~Splitter();
  Splitter(Splitter&&) noexcept;

  const std::vector<std::string>& patterns() const { return patterns_; }

  // piece(views into `text`), in order; together they are the text. What a pattern does not match
  // is a piece too, and so is each longest run of bytes that are no UTF-8, which patterns do not
  // see.
  void split(std::string_view text, const std::function<void(std::string_view)>& piece) const;

 private:
  struct Compiled;
  void split_valid(std::string_view text, size_t pattern,
                   const std::function<void(std::string_view)>& piece) const;

  std::vector<std::string> patterns_;
  std::vector<std::unique_ptr<Compiled>> compiled_;
};

}  // namespace fovea::data
