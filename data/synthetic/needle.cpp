// SPDX-License-Identifier: Apache-2.0
#include "data/synthetic/needle.h"

namespace fovea::data {

void NeedleOptions::describe(config::Fields& f) {
  SequenceOptions::describe(f);
  f.add("needles", needles, "facts hidden, one of which is asked for", config::from_to(1, 1 << 24));
  f.add("value_length", value_length, "length of the answer", config::from_to(1, 1 << 24),
        "tokens");
  f.add("vocab_size", vocab_size, "two markers and the tokens of hay, keys and values",
        config::from_to(4, 1 << 24));
}

namespace {

class NeedleSource final : public SequenceSource {
 public:
  NeedleSource(const NeedleOptions& options, Split split)
      : SequenceSource("needle", options.vocab_size, options, split),
        needles_(options.needles),
        length_(options.value_length) {
    const int64_t least = needles_ * (2 + length_) + 1 + length_;
    FOVEA_CHECK(least <= options.context, "needle: ", needles_, " needles and the question take ",
                least, " tokens, but context is ", options.context);
    FOVEA_CHECK(needles_ <= words(), "needle: ", needles_,
                " needles need as many keys; vocab_size ", options.vocab_size, " has ", words());
  }

 private:
  int64_t words() const { return description_.vocab_size - 2; }
  int64_t word(Draw& draw) const { return 2 + draw.below(words()); }

  void fill(Draw& draw, int64_t* inputs, int64_t* targets) const override {
    const int64_t hay = context() - (1 + length_), size = 2 + length_;
    for (int64_t i = 0; i < hay; ++i) inputs[i] = word(draw);
    const std::vector<int64_t> keys = draw.distinct(needles_, words());
    // Each needle is one of `spare + needles` items in a row; the others are single tokens of hay.
    std::vector<int64_t> items = draw.distinct(needles_, hay - needles_ * (size - 1));
    std::sort(items.begin(), items.end());
    const int64_t asked = draw.below(needles_);
    for (int64_t n = 0; n < needles_; ++n) {
      int64_t* needle = inputs + items[static_cast<size_t>(n)] + n * (size - 1);
      needle[0] = 0;
      needle[1] = 2 + keys[static_cast<size_t>(n)];
      for (int64_t i = 0; i < length_; ++i) needle[2 + i] = word(draw);
      if (n != asked) continue;
      inputs[hay] = 1;
      inputs[hay + 1] = needle[1];
      for (int64_t i = 0; i < length_; ++i) {
        targets[hay + 1 + i] = needle[2 + i];
        if (i + 1 < length_) inputs[hay + 2 + i] = needle[2 + i];
      }
    }
  }
  int64_t needles_, length_;
};

}  // namespace

std::unique_ptr<Source> make_needle(const NeedleOptions& options, Split split) {
  return std::make_unique<NeedleSource>(options, split);
}

}  // namespace fovea::data
