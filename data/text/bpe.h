// SPDX-License-Identifier: Apache-2.0
#pragma once
// Byte-level byte pair encoding (Sennrich et al. 1508.07909, over bytes as in GPT-2). A text is cut
// into pieces (splitter.h); a piece starts as its bytes, and as long as adjacent tokens form a
// known pair, the pair of the lowest rank (of several, the leftmost) becomes one token. Any bytes
// round trip: those that are no UTF-8 are pieces of their own.

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/splitter.h"
#include "data/tokenizer.h"

namespace fovea::data {

struct BpeMerge {
  int32_t left, right, result;  // ids
  int32_t rank;  // lower ranks merge first; pairs with one result may share a rank; of one pair
                 // listed twice the last counts
};

struct BpeModel {
  std::vector<std::string> tokens;  // bytes by id; "" where no token has the id
  std::vector<BpeMerge> merges;     // in order of rank
  std::map<std::string, int32_t>
      added;  // special texts, cut out before anything else: leftmost, then longest
  std::set<std::string>
      added_last;  // of these, the ones looked for only in what the others leave ("normalized")
  std::vector<std::string> split{std::string(kGpt2Split)};
  bool whole_pieces = false;  // a piece that is a token is taken without merging (ignore_merges)
};

// Throws for an id out of range, two tokens with the same bytes, or a merge whose result is not its
// two parts.
std::unique_ptr<Tokenizer> make_bpe(BpeModel model);

// The model that byte pairs of `text` give: ids 0-255 are the bytes in GPT-2's order, then one id a
// merge. In each step the pair with the highest count is merged; of equal counts, the one with the
// lowest ids. Throws when vocab_size is below 256 or more than the text has repeated pairs for.
BpeModel train_bpe_model(std::string_view text, int64_t vocab_size);

// ---- files --------------------------------------------------------------------------------------

// The tokenizer.json of Hugging Face: a BPE model over the byte alphabet, no normalizer,
// pre-tokenizers ByteLevel, Split, Digits and sequences of them. What post-processors would add (a
// token at the beginning) is not added. Throws naming `path` and the part that cannot be
// reproduced.
BpeModel read_huggingface(std::string_view json, const std::string& path);
std::string write_huggingface(const BpeModel& model);
// GPT-2's pair encoder.json and vocab.bpe (also called vocab.json and merges.txt).
BpeModel read_gpt2(std::string_view encoder, std::string_view merges, const std::string& path);
// Lines "base64(bytes) rank". Split pattern and special tokens follow from the file's name:
// r50k_base, p50k_base, p50k_edit, cl100k_base or o200k_base. Throws naming the line that is
// damaged.
BpeModel read_tiktoken(std::string_view content, const std::filesystem::path& path);

// ---- GPT-2's byte alphabet ----------------------------------------------------------------------

// Byte b as a printable character, in UTF-8: itself for 33-126, 161-172 and 174-255; the others, in
// order, from U+0100 on.
const std::string& byte_letter(unsigned char byte);
// Bytes in the order of their letters: 33, ..., 255, 0, 1, ...
const std::vector<unsigned char>& byte_order();

}  // namespace fovea::data
