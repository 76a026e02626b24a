// SPDX-License-Identifier: Apache-2.0
#pragma once
// Needle in a haystack: facts hidden at random depths of random tokens, one of which is asked for
// at the end (the passkey task of 2305.16300 section 4.2, with any number of needles as in RULER,
// 2404.06654).

#include "data/synthetic/sequences.h"

namespace fovea::data {

struct NeedleOptions : SequenceOptions {
  int64_t needles = 1;
  int64_t value_length = 4;  // tokens of an answer
  int64_t vocab_size =
      64;  // 0 opens a needle, 1 opens the question, the rest are keys, values and hay alike
  void describe(config::Fields& f) override;
};

// hay 0 k v1 .. vL hay ... 1 k v1 .. v(L-1): scored from the question's key on, where v1 .. vL must
// follow. Keys differ.
std::unique_ptr<Source> make_needle(const NeedleOptions& options, Split split);

}  // namespace fovea::data
