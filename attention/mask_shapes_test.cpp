// SPDX-License-Identifier: Apache-2.0
#include "attention/mask_shapes.h"

#include <gtest/gtest.h>

namespace fovea::attention {
namespace {

// Every pair of query and key against the definition; classes of tiles against the pairs.
void expect_mask(const Mask& mask, int64_t N, const std::function<bool(int64_t, int64_t)>& seen,
                 const char* what) {
  mask.validate(1, 1, N, N);
  for (int64_t i = 0; i < N; ++i)
    for (int64_t j = 0; j < N; ++j)
      EXPECT_EQ(mask.allowed(0, 0, i, j, N, N), seen(i, j)) << what << ' ' << i << ' ' << j;
  for (int64_t i0 = 0; i0 < N; i0 += 5) {
    for (int64_t j0 = 0; j0 < N; j0 += 4) {
      const int64_t i1 = std::min(N, i0 + 5), j1 = std::min(N, j0 + 4);
      int64_t pairs = 0;
      for (int64_t i = i0; i < i1; ++i)
        for (int64_t j = j0; j < j1; ++j) pairs += seen(i, j) ? 1 : 0;
      const TileClass found = mask.classify(0, 0, i0, i1, j0, j1, N, N);
      if (found == TileClass::skip) {
        EXPECT_EQ(pairs, 0) << what;
      }
      if (found == TileClass::full) {
        EXPECT_EQ(pairs, (i1 - i0) * (j1 - j0)) << what;
      }
      if (pairs == 0) {
        EXPECT_EQ(found, TileClass::skip) << what << ' ' << i0 << ' ' << j0;
      }
    }
  }
}

TEST(MaskShapes, GlobalWindow) {
  expect_mask(
      global_window(33, 3, 5, 6), 33,
      [](int64_t i, int64_t j) { return (i - j <= 3 && j - i <= 5) || i < 6 || j < 6; }, "both");
  expect_mask(
      global_window(20, -1, 0, 2), 20,
      [](int64_t i, int64_t j) { return j <= i || i < 2 || j < 2; }, "unbounded");
}

TEST(MaskShapes, PackedDocuments) {
  const int64_t N = 33, last = 2;
  const std::vector<int64_t> lengths{5, 11, 13};  // four tokens of padding
  const auto document = [](int64_t t) -> int64_t {
    return t < 5 ? 0 : t < 16 ? 1 : t < 29 ? 2 : -1;
  };
  const auto start = [](int64_t t) -> int64_t { return t < 5 ? 0 : t < 16 ? 5 : 16; };
  const auto expect = [&](Packed kind, int64_t size, const char* what,
                          const std::function<bool(int64_t, int64_t)>& seen) {
    expect_mask(
        packed_documents(document_ids(lengths, N), kind, size), N,
        [&](int64_t i, int64_t j) { return document(i) >= 0 && document(j) >= 0 && seen(i, j); },
        what);
  };
  const auto same = [&](int64_t i, int64_t j) { return document(i) == document(j); };
  expect(Packed::full, 0, "full", same);
  expect(Packed::causal, 0, "causal", [&](int64_t i, int64_t j) { return same(i, j) && j <= i; });
  expect(Packed::prefix, 4, "prefix",
         [&](int64_t i, int64_t j) { return same(i, j) && (j <= i || j - start(j) < 4); });
  expect(Packed::blocks, 4, "blocks", [&](int64_t i, int64_t j) {
    return same(i, j) && (j - start(j)) / 4 <= (i - start(i)) / 4;
  });
  expect(Packed::question, 0, "question", [&](int64_t i, int64_t j) {
    return (same(i, j) && j <= i) || (document(j) == 0 && document(i) > 0);
  });
  expect(Packed::last_reads, 0, "last reads", [&](int64_t i, int64_t j) {
    return (same(i, j) && j <= i) || (document(i) == last && document(j) < last);
  });
}

TEST(MaskShapes, EverySequenceHasItsOwnDocuments) {
  const Tensor ids = Tensor::from(std::vector<int32_t>{4, 4, 7, 7, 7, -1,  //
                                                       -1, 2, 2, 3, 3, 3},
                                  {2, 6});
  const Mask mask = packed_documents(ids, Packed::question);
  const auto row = [&](int64_t b, int64_t i) {
    return mask.parts().ranges.select(0, b).select(0, i).to_vector<int32_t>();
  };
  using Row = std::vector<int32_t>;
  EXPECT_EQ(row(0, 1), (Row{0, 2, 0, 0}));
  EXPECT_EQ(row(0, 3), (Row{0, 4, 0, 0}));  // [0, 2) and [2, 4), which meet
  EXPECT_EQ(row(0, 5), (Row{0, 0, 0, 0}));
  EXPECT_EQ(row(1, 0), (Row{0, 0, 0, 0}));
  EXPECT_EQ(row(1, 2), (Row{1, 3, 0, 0}));
  EXPECT_EQ(row(1, 4), (Row{3, 5, 0, 0}));  // no first document to share
}

TEST(MaskShapes, Slices) {
  const std::vector<std::array<int64_t, 5>> list{
      {0, 12, 0, 20, 3}, {12, 20, 4, 16, 1}, {20, 33, 20, 33, 2}, {20, 33, 0, 7, 0}};
  expect_mask(
      slices(list, 33), 33,
      [&](int64_t i, int64_t j) {
        for (const auto& [q0, q1, k0, k1, type] : list) {
          if (i < q0 || i >= q1 || j < k0 || j >= k1) continue;
          if ((type == 1 || type == 3) && j - k1 > i - q1) continue;
          if (type >= 2 && j - k0 < i - q0) continue;
          return true;
        }
        return false;
      },
      "slices");
}

TEST(MaskShapes, WhatCannotBeIsNamed) {
  const auto what = [](const std::function<void()>& f) -> std::string {
    try {
      f();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(what([] { document_ids({5, 0}, 9); }), "mask: a document of 0 tokens");
  EXPECT_EQ(what([] {
              document_ids({5, 7}, 9);
            }),
            "mask: documents of 12 tokens in a sequence of 9");
  EXPECT_EQ(what([] { packed_documents(document_ids({5}, 9), Packed::blocks); }),
            "mask: blocks of 0 tokens");
  EXPECT_EQ(what([] {
              slices({{0, 9, 0, 1, 0}, {0, 9, 3, 4, 0}, {4, 9, 6, 7, 0}}, 9);
            }),
            "mask: query 4 sees keys in 3 ranges; two at most are possible, else block_sparse");
  EXPECT_EQ(what([] {
              slices({{0, 10, 0, 1, 0}}, 9);
            }),
            "mask: slice [0, 10, 0, 1, 0] of 9 tokens");
  EXPECT_EQ(what([] { global_window(9, 2, 2, 1).validate(1, 1, 8, 8); }),
            "mask: ranges are i32 [1, 9, 4]; expected i32 [1 or 1, 8, 4]");
}

}  // namespace
}  // namespace fovea::attention
