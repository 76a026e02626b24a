// SPDX-License-Identifier: Apache-2.0
#pragma once
// State tracking as a word problem (2404.08819 section 4): each token is an element of a group, and
// at each position the product of all so far must be given. Parity is Z2; S5 and A5 need depth that
// grows with the length.

#include "data/synthetic/sequences.h"

namespace fovea::data {

struct StateTrackingOptions : SequenceOptions {
  std::string group = "parity";  // parity | cyclic | s3 | a5 | s5
  int64_t modulus = 5;           // of cyclic
  void describe(config::Fields& f) override;
};

std::unique_ptr<Source> make_state_tracking(const StateTrackingOptions& options, Split split);

}  // namespace fovea::data
