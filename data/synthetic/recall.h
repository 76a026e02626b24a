// SPDX-License-Identifier: Apache-2.0
#pragma once
// Multi-query associative recall (2312.04927 section 4): a sequence opens with key-value pairs;
// later keys appear again, each at least once, and the model must answer with the value.

#include "data/synthetic/sequences.h"

namespace fovea::data {

struct RecallOptions : SequenceOptions {
  int64_t pairs = 4;
  int64_t queries = 0;       // 0: as many as pairs
  int64_t vocab_size = 256;  // 0 is filler; keys are the lower half of the rest, values the upper
  void describe(config::Fields& f) override;
};

// k1 v1 k2 v2 ... then filler, with keys at random later positions, where the target is its value;
// all other targets are kIgnore. Throws when the queries do not fit.
std::unique_ptr<Source> make_recall(const RecallOptions& options, Split split);

}  // namespace fovea::data
