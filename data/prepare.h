// SPDX-License-Identifier: Apache-2.0
#pragma once
// Making data sets, and looking into them.

#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include "data/source.h"

namespace fovea::data {

struct PrepareOptions {
  std::string tokenizer = "characters";  // bytes | characters | bpe (learned from the training
                                         // part) | a file that load_tokenizer reads
  int64_t vocab_size = 2048;             // of bpe
  double val_fraction = 0.1;             // the last part of the text is held out
};

// train.bin, val.bin and tokenizer.json in `folder` (made if needed) from a text file. Throws for
// an empty text.
void prepare_text(const std::filesystem::path& text, const std::filesystem::path& folder,
                  const PrepareOptions& options, std::ostream& log);
// The same from the King James Bible of Debian's bible-kjv package, as its `bible` program prints
// it.
void prepare_kjv(const std::filesystem::path& folder, const PrepareOptions& options,
                 std::ostream& log);
// Unpacks Debian's dataset-fashion-mnist into `folder`.
void prepare_fashion_mnist(const std::filesystem::path& folder, std::ostream& log);

// What a data section opens to: sizes, shapes, the first samples (text decoded, images as shades of
// characters).
void inspect(const config::Choice& data, std::ostream& out);

}  // namespace fovea::data
