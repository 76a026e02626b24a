// SPDX-License-Identifier: Apache-2.0
// Each task's answers, worked out again from its inputs by a plain definition.
#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "data/synthetic/copy.h"
#include "data/synthetic/needle.h"
#include "data/synthetic/recall.h"
#include "data/synthetic/regression.h"
#include "data/synthetic/state_tracking.h"
#include "data/test_util.h"

namespace fovea::data {
namespace {

using Ids = std::vector<int64_t>;

// f(inputs, targets) for 20 sequences.
void each(const Source& source, const std::function<void(const Ids&, const Ids&)>& f) {
  for (int64_t i = 0; i < 20; ++i) {
    const Sample sample{i, 0, 0};
    const Batch batch = source.make({&sample, 1}, 1);
    const Ids in = batch.inputs.to_vector<int64_t>(), out = batch.targets.to_vector<int64_t>();
    ASSERT_EQ(static_cast<int64_t>(in.size()), source.description().context);
    for (size_t t = 0; t < in.size(); ++t) {
      ASSERT_TRUE(in[t] >= 0 && in[t] < source.description().vocab_size) << in[t];
      ASSERT_TRUE(out[t] == kIgnore || (out[t] >= 0 && out[t] < source.description().vocab_size))
          << out[t];
    }
    f(in, out);
  }
}

TEST(Synthetic, SamplesDependOnTheirIndexAndSplitAlone) {
  for (const auto& make : std::vector<std::function<std::unique_ptr<Source>(Split)>>{
           [](Split s) { return make_recall({}, s); }, [](Split s) { return make_copy({}, s); },
           [](Split s) { return make_selective_copy({}, s); },
           [](Split s) { return make_needle({}, s); },
           [](Split s) { return make_regression({}, s); },
           [](Split s) { return make_state_tracking({}, s); }}) {
    const auto train = make(Split::train), val = make(Split::val);
    EXPECT_EQ(train->size(), 100000);
    EXPECT_EQ(val->size(), 1000);
    const Sample together[] = {{3, 0, 0}, {7, 0, 1}}, alone{7, 5, 99};
    const Ids both = train->make(together, 1).inputs.to_vector<int64_t>(),
              one = train->make({&alone, 1}, 2).inputs.to_vector<int64_t>();
    EXPECT_EQ(Ids(both.begin() + static_cast<int64_t>(one.size()), both.end()), one);
    EXPECT_NE(Ids(both.begin(), both.begin() + static_cast<int64_t>(one.size())), one);
    EXPECT_NE(val->make({&alone, 1}, 1).inputs.to_vector<int64_t>(), one);
  }
}

TEST(Synthetic, RecallAsksForTheValueThatFollowedItsKey) {
  each(*make_recall({}, Split::train), [](const Ids& in, const Ids& out) {
    int scored = 0;
    for (size_t i = 0; i < in.size(); ++i) {
      if (out[i] == kIgnore) continue;
      ++scored;
      const auto key = static_cast<size_t>(std::find(in.begin(), in.end(), in[i]) - in.begin());
      ASSERT_LT(key, 8u);
      EXPECT_EQ(in[key + 1], out[i]);
    }
    EXPECT_EQ(scored, 4);
  });
  RecallOptions options;
  options.context = 11;
  EXPECT_ERROR(make_recall(options, Split::train),
               "pairs and 4 queries take 12 tokens, but context is 11");
}

TEST(Synthetic, CopyRepeatsItsLetters) {
  CopyOptions options;
  options.context = 12;
  each(*make_copy(options, Split::train), [](const Ids& in, const Ids& out) {
    EXPECT_EQ(in[6], 0);
    EXPECT_EQ(Ids(out.begin() + 6, out.end()), Ids(in.begin(), in.begin() + 6));
    EXPECT_EQ(Ids(in.begin() + 7, in.end()), Ids(in.begin(), in.begin() + 5));
    EXPECT_EQ(Ids(out.begin(), out.begin() + 6), Ids(6, kIgnore));
    EXPECT_EQ(std::count(in.begin(), in.end(), 0), 1);
  });
  options.context = 13;
  EXPECT_ERROR(make_copy(options, Split::train),
               "context must be even, twice the letters to copy; found 13");
}

TEST(Synthetic, SelectiveCopyGivesTheLettersInOrder) {
  SelectiveCopyOptions options;
  options.context = 30;
  options.letters = 5;
  each(*make_selective_copy(options, Split::train), [](const Ids& in, const Ids& out) {
    Ids letters, answers;
    for (size_t i = 0; i < 30; ++i) {
      if (in[i] >= 2) letters.push_back(in[i]);
      if (out[i] != kIgnore) answers.push_back(out[i]);
      EXPECT_EQ(in[i] == 1, i >= 25);
      EXPECT_EQ(out[i] != kIgnore, i >= 25);
    }
    EXPECT_EQ(letters.size(), 5u);
    EXPECT_EQ(letters, answers);
  });
  options.letters = 16;
  EXPECT_ERROR(make_selective_copy(options, Split::train),
               "16 letters and as many markers do not fit a context of 30");
}

TEST(Synthetic, NeedleAsksForOneOfTheHiddenValues) {
  NeedleOptions options;
  options.context = 80;
  options.needles = 3;
  std::set<size_t> depths;
  each(*make_needle(options, Split::train), [&](const Ids& in, const Ids& out) {
    const size_t question = 75;  // 1 k v1 v2 v3
    EXPECT_EQ(in[question], 1);
    EXPECT_EQ(std::count(in.begin(), in.end(), 0), 3);
    size_t found = 0;
    for (size_t i = 0; i < question; ++i) {
      if (in[i] != 0 || in[i + 1] != in[question + 1]) continue;
      ++found;
      depths.insert(i);
      EXPECT_EQ(
          Ids(out.begin() + question + 1, out.end()),
          Ids(in.begin() + static_cast<int64_t>(i) + 2, in.begin() + static_cast<int64_t>(i) + 6));
    }
    EXPECT_EQ(found, 1u);  // keys differ
    EXPECT_EQ(Ids(in.begin() + question + 2, in.end()),
              Ids(out.begin() + question + 1, out.end() - 1));
  });
  EXPECT_GT(depths.size(), 10u);
  options.context = 22;
  EXPECT_ERROR(make_needle(options, Split::train),
               "3 needles and the question take 23 tokens, but context is 22");
  options.context = 23;
  each(*make_needle(options, Split::train),
       [](const Ids& in, const Ids&) { EXPECT_EQ(in[0] + in[6] + in[12], 0); });
}

TEST(Synthetic, RegressionHasOneLineASequence) {
  RegressionOptions options;
  options.dim = 1;
  options.bins = 512;
  each(*make_regression(options, Split::train), [](const Ids& in, const Ids& out) {
    // y = w x: the slope is the same within the width of the bins wherever nothing is clipped
    const auto value = [](int64_t bin) {
      return (static_cast<double>(bin) + 0.5) * 6.0 / 512.0 - 3.0;
    };
    double slope = 0.0, weight = 0.0;
    const auto inside = [&](size_t t) {
      return std::abs(value(in[t])) < 2.9 && std::abs(value(out[t] - 512)) < 2.9;
    };
    for (size_t t = 0; t < in.size(); t += 2) {
      EXPECT_EQ(in[t + 1], out[t]);
      EXPECT_EQ(out[t + 1], kIgnore);
      if (!inside(t)) continue;
      slope += value(in[t]) * value(out[t] - 512);
      weight += value(in[t]) * value(in[t]);
    }
    slope /= weight;
    for (size_t t = 0; t < in.size(); t += 2) {
      if (inside(t)) {
        EXPECT_NEAR(value(out[t] - 512), slope * value(in[t]),
                    0.006 * (1.5 + 2.0 * std::abs(slope)));
      }
    }
  });
}

TEST(Synthetic, StatesAreProductsOfTheGroup) {
  const auto order = [](const char* group) {
    StateTrackingOptions options;
    options.group = group;
    const auto source = make_state_tracking(options, Split::train);
    const int64_t n = source->description().vocab_size;
    // 0 is the identity; a state and a token decide the next state, and no two tokens lead to the
    // same one
    std::map<std::pair<int64_t, int64_t>, int64_t> next;
    each(*source, [&](const Ids& in, const Ids& out) {
      int64_t state = 0;
      for (size_t t = 0; t < in.size(); ++t) {
        const auto [known, is_new] = next.try_emplace({state, in[t]}, out[t]);
        EXPECT_EQ(known->second, out[t]);
        state = out[t];
      }
    });
    for (const auto& [a, to_a] : next) {
      if (a.second == 0) {
        EXPECT_EQ(to_a, a.first);
      }
      for (const auto& [b, to_b] : next) {
        if (a.first == b.first && a.second != b.second) {
          EXPECT_NE(to_a, to_b);
        }
      }
    }
    return n;
  };
  EXPECT_EQ(order("parity"), 2);
  EXPECT_EQ(order("cyclic"), 5);
  EXPECT_EQ(order("s3"), 6);
  EXPECT_EQ(order("a5"), 60);
  EXPECT_EQ(order("s5"), 120);
  each(*make_state_tracking({}, Split::val), [](const Ids& in, const Ids& out) {
    int64_t ones = 0;
    for (size_t t = 0; t < in.size(); ++t) EXPECT_EQ((ones += in[t]) % 2, out[t]);
  });
}

}  // namespace
}  // namespace fovea::data
