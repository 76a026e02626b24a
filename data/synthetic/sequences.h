// SPDX-License-Identifier: Apache-2.0
#pragma once
// What made-up sequence tasks share: sample `index` of a split is a function of (task, split,
// index) alone, the same in every run and on every machine. A task only fills one sequence.

#include "data/draw.h"
#include "data/source.h"

namespace fovea::data {

struct SequenceOptions : config::Options {
  int64_t context = 64;  // tokens of a sequence
  int64_t train_samples = 100000;
  int64_t val_samples = 1000;
  void describe(config::Fields& f) override;
};

class SequenceSource : public Source {
 public:
  int64_t size() const final { return samples_; }
  Batch make(std::span<const Sample> samples, uint64_t seed) const final;

 protected:
  SequenceSource(const std::string& name, int64_t vocab_size, const SequenceOptions& options,
                 Split split);
  int64_t context() const { return description_.context; }
  // inputs [context] hold 0 and targets [context] kIgnore.
  virtual void fill(Draw& draw, int64_t* inputs, int64_t* targets) const = 0;

 private:
  int64_t samples_;
  std::string stream_;
};

}  // namespace fovea::data
