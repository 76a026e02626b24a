// SPDX-License-Identifier: Apache-2.0
#include "attention/mask_shapes.h"

#include <algorithm>

namespace fovea::attention {

Tensor key_ranges(int64_t B, int64_t N,
                  const std::function<std::vector<KeyRange>(int64_t b, int64_t i)>& of_query) {
  const Tensor table = Tensor::zeros({B, N, 4}, Dtype::i32);
  for (int64_t at = 0; at < B * N; ++at) {
    const int64_t i = at % N;
    std::vector<KeyRange> given = of_query(at / N, i), joined;
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
    int32_t* row = table.data<int32_t>() + 4 * at;
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
  return Mask().ranges(key_ranges(1, N, [=](int64_t, int64_t i) -> std::vector<KeyRange> {
    if (i < tokens) return {{0, N}};
    return {{0, tokens}, {left < 0 ? 0 : i - left, right < 0 ? N : i + right + 1}};
  }));
}

Mask packed_documents(const Tensor& ids, Packed kind, int64_t size) {
  FOVEA_CHECK(ids.rank() == 2 && ids.dtype() == Dtype::i32, "mask: documents are ", ids.dtype(),
              ' ', ids.shape(), "; expected i32 [B, N]");
  FOVEA_CHECK(kind != Packed::blocks || size >= 1, "mask: blocks of ", size, " tokens");
  FOVEA_CHECK(kind != Packed::prefix || size >= 0, "mask: a prefix of ", size, " tokens");
  const std::vector<int32_t> all = ids.to_vector<int32_t>();
  const int64_t B = ids.dim(0), N = ids.dim(1);
  const auto id = [&](int64_t b, int64_t t) { return all[static_cast<size_t>(b * N + t)]; };
  // Of the sequence at hand: the document of the query at hand, and the end of the first.
  int64_t first = 0, last = 0, question = 0, end = 0;
  return Mask().ranges(key_ranges(B, N, [&](int64_t b, int64_t i) -> std::vector<KeyRange> {
    if (i == 0) {
      first = last = question = 0;
      for (end = N; end > 0 && id(b, end - 1) < 0;) --end;  // of the last document
    }
    if (i >= last) {
      first = last = i;
      while (last < N && id(b, last) == id(b, i)) ++last;
      if (i == 0) question = id(b, 0) < 0 ? 0 : last;
    }
    if (id(b, i) < 0) return {};
    switch (kind) {
      case Packed::full:
        return {{first, last}};
      case Packed::causal:
        return {{first, i + 1}};
      case Packed::prefix:
        return {{first, std::min(last, std::max(i + 1, first + size))}};
      case Packed::blocks:
        return {{first, std::min(last, first + ((i - first) / size + 1) * size)}};
      case Packed::question:
        return {{0, first > 0 ? question : 0}, {first, i + 1}};
      case Packed::last_reads:
        return {{last == end ? 0 : first, i + 1}};
    }
    return {};
  }));
}

Tensor document_ids(const std::vector<int64_t>& lengths, int64_t N) {
  std::vector<int32_t> ids;
  for (const int64_t length : lengths) {
    FOVEA_CHECK(length >= 1, "mask: a document of ", length, " tokens");
    ids.insert(ids.end(), static_cast<size_t>(length), ids.empty() ? 0 : ids.back() + 1);
  }
  FOVEA_CHECK(static_cast<int64_t>(ids.size()) <= N, "mask: documents of ", ids.size(),
              " tokens in a sequence of ", N);
  ids.resize(static_cast<size_t>(N), -1);
  return Tensor::from(ids, {1, N});
}

Mask slices(const std::vector<std::array<int64_t, 5>>& list, int64_t N) {
  for (const auto& [q0, q1, k0, k1, type] : list)
    FOVEA_CHECK(
        0 <= q0 && q0 <= q1 && q1 <= N && 0 <= k0 && k0 <= k1 && k1 <= N && type >= 0 && type <= 3,
        "mask: slice [", q0, ", ", q1, ", ", k0, ", ", k1, ", ", type, "] of ", N, " tokens");
  return Mask().ranges(key_ranges(1, N, [&](int64_t, int64_t i) {
    std::vector<KeyRange> seen;
    for (const auto& [q0, q1, k0, k1, type] : list) {
      if (i < q0 || i >= q1) continue;
      seen.push_back({type >= 2 ? k0 + i - q0 : k0, type % 2 == 1 ? k1 - (q1 - 1 - i) : k1});
    }
    return seen;
  }));
}

}  // namespace fovea::attention
