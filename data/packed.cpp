// SPDX-License-Identifier: Apache-2.0
#include "data/packed.h"

#include "data/draw.h"

namespace fovea::data {

PackedOptions::PackedOptions() : of(document_choice()) {}

void PackedOptions::describe(config::Fields& f) {
  f.add("context", context, "length of a sequence", config::from_to(1, 1 << 24), "tokens");
  f.add("shortest", shortest, "of the documents; the longest are whole samples",
        config::from_to(1, 1 << 24), "tokens");
  f.choice("of", of, "what documents are samples of");
}

namespace {

constexpr uint64_t kPackingSeed = 0x0f0eb1;  // of no run

class PackedSource final : public Source {
 public:
  PackedSource(const PackedOptions& options, Split split)
      : of_(make_source(options.of, split)),
        stream_(split == Split::train ? "packed.train" : "packed.val"),
        shortest_(options.shortest) {
    const Description& of = of_->description();
    FOVEA_CHECK(of.is_tokens, "packed: documents are tokens, but data.of.kind \"",
                options.of.kind(), "\" gives images");
    FOVEA_CHECK(shortest_ <= of.context && of.context <= options.context, "packed: documents of ",
                shortest_, " to ", of.context, " tokens in sequences of ", options.context,
                "; expected shortest <= data.of.context <= context");
    description_ = of;
    description_.name = "packed " + of.name;
    description_.context = options.context;
    documents_ = std::max<int64_t>(1, 2 * options.context / (shortest_ + of.context));
  }
  int64_t size() const override { return std::max<int64_t>(1, of_->size() / documents_); }

  Batch make(std::span<const Sample> samples, uint64_t seed) const override {
    const auto count = static_cast<int64_t>(samples.size());
    const int64_t N = description_.context;
    Batch batch{Tensor::zeros({count, N}, Dtype::i64),
                Tensor::full({count, N}, static_cast<double>(kIgnore), Dtype::i64),
                {},
                Tensor::full({count, N}, -1.0, Dtype::i32)};
    for (int64_t i = 0; i < count; ++i) fill(batch, i, samples[static_cast<size_t>(i)], seed);
    return batch;
  }

 private:
  void fill(const Batch& batch, int64_t row, const Sample& sample, uint64_t seed) const {
    const int64_t N = description_.context, longest = of_->description().context;
    Draw draw(RngKey(kPackingSeed, stream_, "", static_cast<uint64_t>(sample.index)));
    std::vector<int64_t> lengths;
    std::vector<Sample> drawn;
    for (int64_t at = 0; true; at += lengths.back()) {
      const int64_t length = shortest_ + draw.below(longest - shortest_ + 1);
      if (at + length > N) break;
      const auto d = static_cast<int64_t>(lengths.size());
      lengths.push_back(length);
      drawn.push_back(
          {(sample.index * documents_ + d) % of_->size(), sample.epoch, sample.ordinal});
    }
    if (drawn.empty()) return;
    const Batch documents = of_->make(drawn, seed);
    int64_t at = row * N;
    for (size_t d = 0; d < lengths.size(); ++d) {
      const int64_t from = static_cast<int64_t>(d) * longest;
      std::copy_n(documents.inputs.data<int64_t>() + from, lengths[d],
                  batch.inputs.data<int64_t>() + at);
      std::copy_n(documents.targets.data<int64_t>() + from, lengths[d],
                  batch.targets.data<int64_t>() + at);
      std::fill_n(batch.documents.data<int32_t>() + at, lengths[d], static_cast<int32_t>(d));
      at += lengths[d];
    }
  }

  std::unique_ptr<Source> of_;
  std::string stream_;
  int64_t shortest_, documents_ = 1;  // of a sequence, on average
};

}  // namespace

std::unique_ptr<Source> make_packed(const PackedOptions& options, Split split) {
  return std::make_unique<PackedSource>(options, split);
}

}  // namespace fovea::data
