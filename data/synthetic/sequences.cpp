// SPDX-License-Identifier: Apache-2.0
#include "data/synthetic/sequences.h"

namespace fovea::data {
namespace {

constexpr uint64_t kSyntheticSeed = 0x0f0e3a;  // of no run

}  // namespace

void SequenceOptions::describe(config::Fields& f) {
  f.add("context", context, "length of a sequence", config::from_to(3, 1 << 24), "tokens");
  f.add("train_samples", train_samples, "distinct training sequences", config::at_least(1));
  f.add("val_samples", val_samples, "held-out sequences", config::at_least(1));
}

SequenceSource::SequenceSource(const std::string& name, int64_t vocab_size,
                               const SequenceOptions& options, Split split)
    : samples_(split == Split::train ? options.train_samples : options.val_samples),
      stream_(name + (split == Split::train ? ".train" : ".val")) {
  description_.name = name;
  description_.vocab_size = vocab_size;
  description_.context = options.context;
}

Batch SequenceSource::make(std::span<const Sample> samples, uint64_t) const {
  const auto count = static_cast<int64_t>(samples.size());
  const Batch batch{Tensor::zeros({count, context()}, Dtype::i64),
                    Tensor::full({count, context()}, static_cast<double>(kIgnore), Dtype::i64),
                    {}};
  for (int64_t i = 0; i < count; ++i) {
    Draw draw(RngKey(kSyntheticSeed, stream_, "",
                     static_cast<uint64_t>(samples[static_cast<size_t>(i)].index)));
    fill(draw, batch.inputs.data<int64_t>() + i * context(),
         batch.targets.data<int64_t>() + i * context());
  }
  return batch;
}

}  // namespace fovea::data
