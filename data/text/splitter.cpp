// SPDX-License-Identifier: Apache-2.0
#include "data/text/splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/error.h"
#include "data/text/utf8.h"

namespace fovea::data {
namespace {

std::string message_of(int code) {
  unsigned char text[256] = {};
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

// PCRE2's \s holds U+180E, which Unicode's White_Space and so the engines that tokenizers are made
// with do not.
std::string with_unicode_space(const std::string& pattern) {
  std::string out;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const bool escape = pattern[i] == '\\' && i + 1 < pattern.size();
    if (escape && (pattern[i + 1] == 's' || pattern[i + 1] == 'S')) {
      out += pattern[i + 1] == 's' ? R"(\p{White_Space})" : R"(\P{White_Space})";
    } else {
      out += pattern[i];
      if (escape) out += pattern[i + 1];
    }
    if (escape) ++i;
  }
  return out;
}

struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};

}  // namespace

struct Splitter::Compiled {
  explicit Compiled(const std::string& pattern) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    // Lines end at ^ and $ as they do for Oniguruma, which runs the patterns of tokenizer.json
    // files.
    const std::string known = with_unicode_space(pattern);
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(known.data()), known.size(),
                         PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, nullptr);
    FOVEA_CHECK(code != nullptr, "tokenizer: the split pattern \"", pattern,
                "\" does not compile: ", message_of(error), " at offset ", offset);
    // Without machine code (a platform PCRE2 has no JIT for) the same matches come from its
    // interpreter.
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  }
  ~Compiled() { pcre2_code_free(code); }
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;

  pcre2_code* code = nullptr;
};

Splitter::Splitter(std::vector<std::string> patterns) : patterns_(std::move(patterns)) {
  for (const std::string& pattern : patterns_)
    compiled_.push_back(std::make_unique<Compiled>(pattern));
}
Splitter::~Splitter() = default;
Splitter::Splitter(Splitter&&) noexcept = default;

void Splitter::split_valid(std::string_view text, size_t pattern,
                           const std::function<void(std::string_view)>& piece) const {
  if (pattern == compiled_.size()) return piece(text);
  const pcre2_code* code = compiled_[pattern]->code;
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(
      pcre2_match_data_create_from_pattern(code, nullptr));
  size_t done = 0;  // text before it has gone to `piece`
  for (size_t at = 0; at < text.size();) {
    const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                  PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (found == PCRE2_ERROR_NOMATCH) break;
    FOVEA_CHECK(found > 0, "tokenizer: the split pattern \"", patterns_[pattern],
                "\" failed at byte ", at, ": ", message_of(found));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
    const size_t begin = range[0], end = range[1];
    if (begin >= end) {  // an empty match cuts nothing
      at = std::max(begin, at);
      if (at < text.size()) at += utf8_length(text, at);
      continue;
    }
    if (begin > done) split_valid(text.substr(done, begin - done), pattern + 1, piece);
    split_valid(text.substr(begin, end - begin), pattern + 1, piece);
    done = at = end;
  }
  if (done < text.size()) split_valid(text.substr(done), pattern + 1, piece);
}

void Splitter::split(std::string_view text,
                     const std::function<void(std::string_view)>& piece) const {
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin;
    for (size_t length; end < text.size() && (length = strict_utf8_length(text, end)) > 0;)
      end += length;
    if (end > begin) split_valid(text.substr(begin, end - begin), 0, piece);
    begin = end;
    while (end < text.size() && strict_utf8_length(text, end) == 0) ++end;
    if (end > begin) piece(text.substr(begin, end - begin));
    begin = end;
  }
}

}  // namespace fovea::data
