// SPDX-License-Identifier: Apache-2.0
#include "data/synthetic/copy.h"

namespace fovea::data {

void CopyOptions::describe(config::Fields& f) {
  SequenceOptions::describe(f);
  f.add("vocab_size", vocab_size, "separator and letters together", config::from_to(3, 1 << 24));
}

void SelectiveCopyOptions::describe(config::Fields& f) {
  SequenceOptions::describe(f);
  f.add("letters", letters, "to remember", config::from_to(1, 1 << 24));
  f.add("vocab_size", vocab_size, "filler, marker and letters together",
        config::from_to(4, 1 << 24));
}

namespace {

class CopySource final : public SequenceSource {
 public:
  CopySource(const CopyOptions& options, Split split)
      : SequenceSource("copy", options.vocab_size, options, split) {
    FOVEA_CHECK(options.context % 2 == 0,
                "copy: context must be even, twice the letters to copy; found ", options.context);
  }

 private:
  void fill(Draw& draw, int64_t* inputs, int64_t* targets) const override {
    const int64_t letters = context() / 2;
    for (int64_t i = 0; i < letters; ++i) {
      inputs[i] = 1 + draw.below(description_.vocab_size - 1);
      if (i + 1 < letters) inputs[letters + 1 + i] = inputs[i];
      targets[letters + i] = inputs[i];
    }
  }
};

class SelectiveCopySource final : public SequenceSource {
 public:
  SelectiveCopySource(const SelectiveCopyOptions& options, Split split)
      : SequenceSource("selective_copy", options.vocab_size, options, split),
        letters_(options.letters) {
    FOVEA_CHECK(2 * letters_ <= options.context, "selective_copy: ", letters_,
                " letters and as many markers do not fit a context of ", options.context);
  }

 private:
  void fill(Draw& draw, int64_t* inputs, int64_t* targets) const override {
    const int64_t markers = context() - letters_;
    std::vector<int64_t> places = draw.distinct(letters_, markers);
    std::sort(places.begin(), places.end());
    for (int64_t i = 0; i < letters_; ++i) {
      inputs[markers + i] = 1;
      targets[markers + i] = inputs[places[static_cast<size_t>(i)]] =
          2 + draw.below(description_.vocab_size - 2);
    }
  }
  int64_t letters_;
};

}  // namespace

std::unique_ptr<Source> make_copy(const CopyOptions& options, Split split) {
  return std::make_unique<CopySource>(options, split);
}
std::unique_ptr<Source> make_selective_copy(const SelectiveCopyOptions& options, Split split) {
  return std::make_unique<SelectiveCopySource>(options, split);
}

}  // namespace fovea::data
