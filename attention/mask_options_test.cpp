// SPDX-License-Identifier: Apache-2.0
#include "attention/mask_options.h"

#include <gtest/gtest.h>

#include "core/testing/error_of.h"

namespace fovea::attention {
namespace {

TEST(MaskOptions, WhatDoesNotFitIsNamed) {
  const auto mask = [](const std::vector<std::pair<std::string, std::string>>& flags,
                       const Tensor& blocks = Tensor()) {
    return error_of([&] {
      struct Root : config::Options {
        SequenceMaskOptions mask;
        void describe(config::Fields& f) override { mask.describe(f); }
      } options;
      std::vector<config::Flag> all;
      for (const auto& [key, value] : flags) all.push_back({key, value});
      config::load_text(options, "", "test", all);
      options.mask.mask(1, 9, blocks);
    });
  };
  EXPECT_EQ(mask({{"mask", "causal"}, {"window", "[3, 0]"}}),
            "mask: mask causal has no window; sliding_window does");
  EXPECT_EQ(mask({{"mask", "sliding_window"}, {"window", "[3]"}}),
            "mask: window has 1 numbers; expected [left, right]");
  EXPECT_EQ(mask({{"mask", "slices"}, {"slices", "[[0, 1, 2]]"}}),
            "mask: a slice of 3 numbers; expected [q0, q1, k0, k1, type]");
  EXPECT_EQ(mask({{"mask", "block_sparse"}}),
            "mask: block_sparse needs block_mask [H, rows, cols]");
  const Tensor blocks = Tensor::full({2, 3, 3}, 1.0, Dtype::i64);
  EXPECT_EQ(mask({{"mask", "block_sparse"}, {"rows", "[3, 3, 2]"}, {"cols", "[3, 3, 3]"}}, blocks),
            "mask: rows are 3 blocks of 8 tokens; expected 3 blocks of 9");
  EXPECT_EQ(
      mask({{"mask", "block_sparse"}, {"rows", "[[3, 3, 3]]"}, {"cols", "[3, 3, 3]"}}, blocks),
      "no error");
  EXPECT_EQ(mask({{"mask", "block_sparse"},
                  {"rows", "[[3, 3, 3], [3, 3, 3], [3, 3, 3]]"},
                  {"cols", "[3, 3, 3]"}},
                 blocks),
            "mask: rows are block sizes of 3 heads; expected 1 or 2");
  EXPECT_EQ(mask({{"mask", "full"}}, blocks), "mask: mask full has no block_mask");
  EXPECT_NE(mask({{"mask", "causl"}}).find("causal"), std::string::npos);
}

}  // namespace
}  // namespace fovea::attention
