// SPDX-License-Identifier: Apache-2.0
#include "data/synthetic/recall.h"

namespace fovea::data {

void RecallOptions::describe(config::Fields& f) {
  SequenceOptions::describe(f);
  f.add("pairs", pairs, "key-value pairs", config::from_to(1, 1 << 24));
  f.add("queries", queries, "keys asked for, each at least once; 0: as many as pairs",
        config::from_to(0, 1 << 24));
  f.add("vocab_size", vocab_size, "filler, keys and values together", config::from_to(3, 1 << 24));
}

namespace {

class RecallSource final : public SequenceSource {
 public:
  RecallSource(const RecallOptions& options, Split split)
      : SequenceSource("recall", options.vocab_size, options, split), pairs_(options.pairs) {
    keys_ = (options.vocab_size - 1) / 2;
    queries_ = options.queries > 0 ? options.queries : pairs_;
    FOVEA_CHECK(queries_ >= pairs_, "recall: ", queries_, " queries cannot ask for each of ",
                pairs_, " pairs");
    FOVEA_CHECK(pairs_ <= keys_, "recall: ", pairs_, " pairs need as many keys; vocab_size ",
                options.vocab_size, " has ", keys_);
    FOVEA_CHECK(2 * pairs_ + queries_ <= options.context, "recall: ", pairs_, " pairs and ",
                queries_, " queries take ", 2 * pairs_ + queries_, " tokens, but context is ",
                options.context);
  }

 private:
  void fill(Draw& draw, int64_t* inputs, int64_t* targets) const override {
    const std::vector<int64_t> keys = draw.distinct(pairs_, keys_);
    const std::vector<int64_t> places = draw.distinct(queries_, context() - 2 * pairs_);
    for (int64_t p = 0; p < pairs_; ++p) {
      inputs[2 * p] = 1 + keys[static_cast<size_t>(p)];
      inputs[2 * p + 1] = 1 + keys_ + draw.below(description_.vocab_size - 1 - keys_);
    }
    for (int64_t q = 0; q < queries_; ++q) {
      const int64_t pair = q < pairs_ ? q : draw.below(pairs_),
                    at = 2 * pairs_ + places[static_cast<size_t>(q)];
      inputs[at] = inputs[2 * pair];
      targets[at] = inputs[2 * pair + 1];
    }
  }
  int64_t pairs_, keys_ = 0, queries_ = 0;
};

}  // namespace

std::unique_ptr<Source> make_recall(const RecallOptions& options, Split split) {
  return std::make_unique<RecallSource>(options, split);
}

}  // namespace fovea::data
