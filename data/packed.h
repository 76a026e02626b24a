// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sequences of several documents, one behind the other: each is the beginning of a sample of
// another kind of data, of random length. A document that does not fit any more is left out, and
// what remains is padding, unequal from sequence to sequence.

#include "data/source.h"

namespace fovea::data {

struct PackedOptions : config::Options {
  PackedOptions();
  int64_t context = 256;  // tokens of a sequence
  int64_t shortest = 1;   // tokens of a document; the longest has those of a sample
  config::Choice of;      // [data.of] kind = any but packed
  void describe(config::Fields& f) override;
};

// All kinds but packed.
config::Choice document_choice();

// Padding has id 0, document -1 and target kIgnore. Throws where `of` gives images, or samples that
// are shorter than `shortest` or longer than a sequence.
std::unique_ptr<Source> make_packed(const PackedOptions& options, Split split);

}  // namespace fovea::data
