// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a rank holds of a sequence that lies over several. Layers that treat tokens alike (norms,
// linear layers, the loss) take the part as it is; what counts tokens (positions, dropout's draws)
// counts them in the whole sequence, so that the cut changes nothing. How a mixer sees the tokens
// of other ranks is the business of who made the part: attention/over_parts.h.

#include <vector>

#include "autograd/variable.h"

namespace fovea::nn {

class SequencePart {
 public:
  // Tokens first, first + stride, ... of the whole.
  struct Run {
    int64_t first, stride, count;
  };

  // Of a sequence of `whole` tokens, `runs` one after the other.
  SequencePart(int64_t whole, std::vector<Run> runs);
  virtual ~SequencePart() = default;

  int64_t whole() const { return whole_; }
  const std::vector<Run>& runs() const { return runs_; }
  // How many tokens the part has, and where in the whole: i64 [n].
  int64_t tokens() const { return positions_.numel(); }
  const Tensor& positions() const { return positions_; }
  // Whether the sequence's first token is this part's, and then its first.
  bool holds_first() const { return !runs_.empty() && runs_.front().first == 0; }

  // Of parts that know of one another; else they throw. The part's tokens along an axis of the
  // whole, contiguous:
  virtual Tensor take(const Tensor& whole, int axis) const;
  // The sum over all parts of x, of one shape, on each. Differentiable: gradients are summed too.
  virtual Variable summed(const Variable& x) const;

 private:
  int64_t whole_;
  std::vector<Run> runs_;
  Tensor positions_;
};

}  // namespace fovea::nn
