// SPDX-License-Identifier: Apache-2.0
#include "attention/mask_shapes.h"

#include <algorithm>

namespace fovea::attention {

Tensor key_ranges(int64_t N, const std::function<std::vector<KeyRange>(int64_t i)>& of_query) {
  const Tensor table = Tensor::zeros({1, N, 4}, Dtype::i32);
  for (int64_t i = 0; i < N; ++i) {
    std::vector<KeyRange> given = of_query(i), joined;
    for (KeyRange& r : given) r = {std::max<int64_t>(0, r.first), std::min(N, r.last)};
    std::erase_if(given, [](const KeyRange& r) { return r.first >= r.last; });
    std::sort(given.begin(), given.end(),
              [](const KeyRange& a, const KeyRange& b) { return a.first < b.first; });
    for (const KeyRange& r : given) {
      if (!joined.empty() && r.first <= joined.back().last) {
        joined.back().last = std::max(joined.back().last, r.last);
      } else {
        joined.push_back(r);
      }
    }
    FOVEA_CHECK(joined.size() <= 2, "mask: query ", i, " sees keys in ", joined.size(),
                " ranges; two at most are possible, else block_sparse");
    int32_t* row = table.data<int32_t>() + 4 * i;
    for (const KeyRange& r : joined) {
      *row++ = static_cast<int32_t>(r.first);
      *row++ = static_cast<int32_t>(r.last);
    }
  }
  return table;
}

Mask global_window(int64_t N, int64_t left, int64_t right, int64_t tokens) {
  FOVEA_CHECK(left >= -1 && right >= -1 && tokens >= 0, "mask: window [", left, ", ", right,
              "] with ", tokens, " global tokens");
  return Mask().ranges(key_ranges(N, [=](int64_t i) -> std::vector<KeyRange> {
    if (i < tokens) return {{0, N}};
    return {{0, tokens}, {left < 0 ? 0 : i - left, right < 0 ? N : i + right + 1}};
  }));
}

Mask packed_documents(const std::vector<int64_t>& lengths, int64_t N, Packed kind, int64_t size) {
  FOVEA_CHECK(kind != Packed::blocks || size >= 1, "mask: blocks of ", size, " tokens");
  FOVEA_CHECK(kind != Packed::prefix || size >= 0, "mask: a prefix of ", size, " tokens");
  struct Document {
    int64_t first, last;
  };
  std::vector<Document> documents;
  int64_t at = 0;
  for (const int64_t length : lengths) {
    FOVEA_CHECK(length >= 1, "mask: document ", documents.size(), " has ", length, " tokens");
    documents.push_back({at, at + length});
    at += length;
  }
  FOVEA_CHECK(at <= N, "mask: documents of ", at, " tokens in a sequence of ", N);
  size_t d = 0;  // queries come in order
  return Mask().ranges(key_ranges(N, [&](int64_t i) -> std::vector<KeyRange> {
    while (d < documents.size() && i >= documents[d].last) ++d;
    if (d == documents.size()) return {};
    const auto [first, last] = documents[d];
    const auto until = [&](int64_t end) -> std::vector<KeyRange> {
      return {{first, std::min(last, end)}};
    };
    switch (kind) {
      case Packed::full:
        return until(last);
      case Packed::causal:
        return until(i + 1);
      case Packed::prefix:
        return until(std::max(i + 1, first + size));
      case Packed::blocks:
        return until(first + ((i - first) / size + 1) * size);
      case Packed::question:
        return {{0, d > 0 ? documents[0].last : 0}, {first, i + 1}};
      case Packed::last_reads:
        return {{d + 1 == documents.size() ? 0 : first, i + 1}};
    }
    return {};
  }));
}

Mask slices(const std::vector<std::array<int64_t, 5>>& list, int64_t N) {
  for (const auto& [q0, q1, k0, k1, type] : list)
    FOVEA_CHECK(
        0 <= q0 && q0 <= q1 && q1 <= N && 0 <= k0 && k0 <= k1 && k1 <= N && type >= 0 && type <= 3,
        "mask: slice [", q0, ", ", q1, ", ", k0, ", ", k1, ", ", type, "] of ", N, " tokens");
  return Mask().ranges(key_ranges(N, [&](int64_t i) {
    std::vector<KeyRange> seen;
    for (const auto& [q0, q1, k0, k1, type] : list) {
      if (i < q0 || i >= q1) continue;
      seen.push_back({type >= 2 ? k0 + i - q0 : k0, type % 2 == 1 ? k1 - (q1 - 1 - i) : k1});
    }
    return seen;
  }));
}

}  // namespace fovea::attention
