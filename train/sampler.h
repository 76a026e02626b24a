// SPDX-License-Identifier: Apache-2.0
#pragma once
// Choosing the next token from logits: temperature, top-k, top-p (nucleus, 1904.09751). Draws come
// from Philox at (seed, position), so that the same prompt and seed give the same text on any
// machine with the same logits.

#include <functional>
#include <vector>

#include "data/tokenizer.h"
#include "nn/gpt.h"

namespace fovea::train {

struct SamplerOptions {
  double temperature = 1.0;  // 0: always the most likely token
  int64_t top_k = 0;         // keep the k most likely; 0: all
  double top_p = 1.0;        // keep the smallest set with at least this probability
  uint64_t seed = 1;

  // Throws naming the option that is out of range.
  void validate() const;
};

// logits f32 [vocab]; `position` names the draw.
int64_t choose_token(const Tensor& logits, const SamplerOptions& options, uint64_t position);

// The text of one token; U+FFFD for an id that the tokenizer has no token for (a vocabulary padded
// for the model).
std::string text_of(const data::Tokenizer& tokenizer, int64_t token);

// Feeds `prompt` (at least one token) and generates up to `count` tokens, handing each to `emit`,
// which returns false to stop. When the context is full the window moves on: the last half of it is
// fed again (one pass every context/2 tokens).
void generate(const nn::Gpt& model, std::vector<int64_t> prompt, int64_t count,
              const SamplerOptions& options, const std::function<bool(int64_t token)>& emit);

}  // namespace fovea::train
