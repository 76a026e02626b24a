// SPDX-License-Identifier: Apache-2.0
#pragma once
// UTF-8 by hand where a whole library is not needed.

#include <string_view>

#include "core/error.h"

namespace fovea::data {

// Bytes of the character that starts at text[at]; throws naming the offset of bytes that are no UTF-8.
inline size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(at);
  const size_t length = first < 0x80 ? 1 : (first >> 5) == 0b110 ? 2 : (first >> 4) == 0b1110 ? 3 : (first >> 3) == 0b11110 ? 4 : 0;
  bool good = length > 0 && at + length <= text.size();
  for (size_t i = 1; good && i < length; ++i) good = (byte(at + i) >> 6) == 0b10;
  FOVEA_CHECK(good, "text: byte ", at, " (value ", static_cast<int>(first), ") is not UTF-8; prepare it with --tokenizer bytes");
  return length;
}

}  // namespace fovea::data
