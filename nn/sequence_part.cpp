// SPDX-License-Identifier: Apache-2.0
#include "nn/sequence_part.h"

namespace fovea::nn {

SequencePart::SequencePart(int64_t whole, std::vector<Run> runs)
    : whole_(whole), runs_(std::move(runs)) {
  std::vector<int64_t> positions;
  for (const auto& [first, stride, count] : runs_) {
    for (int64_t t = 0; t < count; ++t) positions.push_back(first + t * stride);
    FOVEA_CHECK(count >= 0 && (count == 0 || (first >= 0 && positions.back() < whole)),
                "sequence part: ", count, " tokens from ", first, " on, every ", stride,
                ", of a sequence of ", whole);
  }
  positions_ = Tensor::from(positions, {static_cast<int64_t>(positions.size())});
}

Tensor SequencePart::take(const Tensor&, int) const {
  throw Error("sequence part: it does not say how its tokens are taken from the whole");
}

Variable SequencePart::summed(const Variable&) const {
  throw Error("sequence part: it knows no other parts to add up with");
}

}  // namespace fovea::nn
