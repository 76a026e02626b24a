// SPDX-License-Identifier: Apache-2.0
#pragma once
// What models learn from. A Source makes samples by number; a Loader (loader.h) decides which ones,
// in which order. A sample is a function of (seed, index, epoch, ordinal), so data never depends on
// threads, ranks or history.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "core/config/config.h"
#include "core/tensor.h"
#include "data/tokenizer.h"

namespace fovea::data {

inline constexpr int64_t kIgnore = -100;  // a target that is not scored

enum class Split { train, val };

struct Description {
  std::string name;
  bool is_tokens = true;
  // tokens
  int64_t vocab_size = 0;
  int64_t context = 0;                         // tokens in a sample
  std::shared_ptr<const Tokenizer> tokenizer;  // or null: the ids are no text
  // images
  int64_t channels = 0, height = 0, width = 0, classes = 0;
};

struct Batch {
  Tensor inputs;        // i64 [B, N] token ids, or f32 [B, C, H, W]
  Tensor targets;       // i64 [B, N] (kIgnore: not scored), or i64 [B]
  Tensor soft_targets;  // f32 [B, classes] instead of targets (mixup, cutmix); or absent
  // i32 [B, N], the document of each token, whose neighbours of one number are one; -1: padding.
  // Absent: each sequence is one document.
  Tensor documents = {};
};

struct Sample {
  int64_t index;     // in [0, size())
  uint64_t epoch;    // how often the loader has gone through the data
  uint64_t ordinal;  // samples drawn before this one since step 0: names its random choices
};

class Source {
 public:
  virtual ~Source() = default;
  const Description& description() const { return description_; }
  virtual int64_t size() const = 0;  // samples of an epoch, at least 1
  virtual Batch make(std::span<const Sample> samples, uint64_t seed) const = 0;

 protected:
  Description description_;
};

// The [data] section: kind = a row of the table in source.cpp.
config::Choice data_choice();
// The kind that a folder or file on disk has, by the names in it. Throws when there is none.
std::string kind_of(const std::filesystem::path& path);
// Opens the data of a section. Throws naming the file and what is wrong with it.
std::unique_ptr<Source> make_source(const config::Choice& data, Split split);

}  // namespace fovea::data
