// SPDX-License-Identifier: Apache-2.0
#include "data/synthetic/recall.h"

#include "core/rng.h"
#include "data/synthetic/draw.h"

namespace fovea::data {

void RecallOptions::describe(config::Fields& f) {
  f.add("context", context, "length of a sequence", config::at_least(3), "tokens");
  f.add("pairs", pairs, "key-value pairs", config::at_least(1));
  f.add("queries", queries, "keys asked for, each at least once; 0: as many as pairs", config::at_least(0));
  f.add("vocab_size", vocab_size, "filler, keys and values together", config::at_least(3));
  f.add("train_samples", train_samples, "distinct training sequences", config::at_least(1));
  f.add("val_samples", val_samples, "held-out sequences", config::at_least(1));
}

namespace {

class RecallSource final : public Source {
 public:
  RecallSource(const RecallOptions& options, Split split) : options_(options), split_(split) {
    keys_ = (options.vocab_size - 1) / 2;
    queries_ = options.queries > 0 ? options.queries : options.pairs;
    FOVEA_CHECK(queries_ >= options.pairs, "recall: ", queries_, " queries cannot ask for each of ", options.pairs, " pairs");
    FOVEA_CHECK(options.pairs <= keys_, "recall: ", options.pairs, " pairs need as many keys; vocab_size ", options.vocab_size, " has ", keys_);
    FOVEA_CHECK(2 * options.pairs + queries_ <= options.context, "recall: ", options.pairs, " pairs and ", queries_, " queries take ", 2 * options.pairs + queries_,
                " tokens, but context is ", options.context);
    description_.name = "recall";
    description_.vocab_size = options.vocab_size;
    description_.context = options.context;
  }
  int64_t size() const override { return split_ == Split::train ? options_.train_samples : options_.val_samples; }

  Batch make(std::span<const Sample> samples, uint64_t) const override {
    const int64_t n = options_.context, pairs = options_.pairs;
    Batch batch = token_batch(static_cast<int64_t>(samples.size()), n);
    for (size_t i = 0; i < samples.size(); ++i) {
      Draw draw(RngKey(kSyntheticSeed, split_ == Split::train ? "recall.train" : "recall.val", "", static_cast<uint64_t>(samples[i].index)));
      int64_t* inputs = batch.inputs.data<int64_t>() + static_cast<int64_t>(i) * n;
      int64_t* targets = batch.targets.data<int64_t>() + static_cast<int64_t>(i) * n;
      std::fill(inputs, inputs + n, int64_t{0});
      const std::vector<int64_t> keys = draw.distinct(pairs, keys_);
      const std::vector<int64_t> places = draw.distinct(queries_, n - 2 * pairs);
      for (int64_t p = 0; p < pairs; ++p) {
        const int64_t key = 1 + keys[static_cast<size_t>(p)], value = 1 + keys_ + draw.below(options_.vocab_size - 1 - keys_);
        inputs[2 * p] = key;
        inputs[2 * p + 1] = value;
      }
      for (int64_t q = 0; q < queries_; ++q) {
        const int64_t pair = q < pairs ? q : draw.below(pairs), at = 2 * pairs + places[static_cast<size_t>(q)];
        inputs[at] = inputs[2 * pair];
        targets[at] = inputs[2 * pair + 1];
      }
    }
    return batch;
  }

 private:
  RecallOptions options_;
  Split split_;
  int64_t keys_, queries_;
};

}  // namespace

std::unique_ptr<Source> make_recall(const RecallOptions& options, Split split) { return std::make_unique<RecallSource>(options, split); }

}  // namespace fovea::data
