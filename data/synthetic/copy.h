// SPDX-License-Identifier: Apache-2.0
#pragma once
// Copying (Hochreiter & Schmidhuber 1997; 1511.06464 section 4.1) and selective copying (2312.00752
// section 3.1).

#include "data/synthetic/sequences.h"

namespace fovea::data {

struct CopyOptions : SequenceOptions {
  int64_t vocab_size = 32;  // the separator 0 and vocab_size - 1 letters
  void describe(config::Fields& f) override;
};
// L letters, the separator, the letters again, with 2 L = context (even); scored from the separator
// on.
std::unique_ptr<Source> make_copy(const CopyOptions& options, Split split);

struct SelectiveCopyOptions : SequenceOptions {
  int64_t letters = 8;      // to remember
  int64_t vocab_size = 18;  // filler 0, the marker 1 and vocab_size - 2 letters
  void describe(config::Fields& f) override;
};
// Letters at random places among filler, then as many markers, at which the letters must be given
// in order.
std::unique_ptr<Source> make_selective_copy(const SelectiveCopyOptions& options, Split split);

}  // namespace fovea::data
