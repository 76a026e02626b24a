// SPDX-License-Identifier: Apache-2.0
#pragma once
// UTF-8 by hand where a whole library is not needed.

#include <string>
#include <string_view>

#include "core/error.h"

namespace fovea::data {

// Bytes of the character that starts at text[at], to the letter of RFC 3629 (no overlong forms, no
// surrogates, nothing above U+10FFFF); 0 for bytes that are no UTF-8.
inline size_t strict_utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(at);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xc2 && first <= 0xdf   ? 2
                        : (first >> 4) == 0b1110         ? 3
                        : first >= 0xf0 && first <= 0xf4 ? 4
                                                         : 0;
  if (length == 0 || at + length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(at + i) >> 6) != 0b10) return 0;
  }
  const unsigned char second = byte(at + 1);
  const bool good = first == 0xe0   ? second >= 0xa0
                    : first == 0xed ? second <= 0x9f
                    : first == 0xf0 ? second >= 0x90
                    : first == 0xf4 ? second <= 0x8f
                                    : true;
  return good ? length : 0;
}

// The same; throws naming the offset of bytes that are no UTF-8.
inline size_t utf8_length(std::string_view text, size_t at) {
  const size_t length = strict_utf8_length(text, at);
  FOVEA_CHECK(length > 0, "text: byte ", at, " (value ",
              static_cast<int>(static_cast<unsigned char>(text[at])),
              ") is not UTF-8; prepare it with --tokenizer bytes");
  return length;
}

// Appends the UTF-8 of a code point.
inline void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xc0 | (c >> 6));
    out += static_cast<char>(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xe0 | (c >> 12));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (c & 0x3f));
  } else {
    out += static_cast<char>(0xf0 | (c >> 18));
    out += static_cast<char>(0x80 | ((c >> 12) & 0x3f));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (c & 0x3f));
  }
}

}  // namespace fovea::data
