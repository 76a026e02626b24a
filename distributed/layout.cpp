// SPDX-License-Identifier: Apache-2.0
#include "distributed/layout.h"

#include <algorithm>

namespace fovea::distributed {

std::string_view name(Order order) {
  switch (order) {
    case Order::contiguous:
      return "contiguous";
    case Order::striped:
      return "striped";
    case Order::zigzag:
      return "zigzag";
    case Order::dispatched:
      return "dispatched";
  }
  return "";
}

namespace {

std::vector<Stretch> stretches(Order order, int64_t N, int R, int r) {
  std::vector<Stretch> all;
  if (order == Order::striped) {
    all.push_back({{r, R}, std::max<int64_t>(0, (N - r + R - 1) / R)});
  } else {
    const int chunks = order == Order::zigzag ? 2 * R : R;
    const Shards cut = Shards::even(N, chunks);
    const auto add = [&](int chunk) { all.push_back({{cut.begin(chunk), 1}, cut.length(chunk)}); };
    add(r);
    if (order == Order::zigzag) add(chunks - 1 - r);
  }
  std::erase_if(all, [](const Stretch& s) { return s.count == 0; });
  if (all.size() == 2 && all[0].place.of(all[0].count) == all[1].place.base)  // neighbours
    return {{all[0].place, all[0].count + all[1].count}};
  return all;
}

std::vector<std::vector<Stretch>> groups_of(Order order, int64_t N, int R) {
  FOVEA_CHECK(N >= 0 && R >= 1, "layout: ", N, " tokens over a ring of ", R);
  FOVEA_CHECK(order != Order::dispatched, "layout: dispatched needs a mask; Layout::dispatched");
  std::vector<std::vector<Stretch>> groups;
  for (int r = 0; r < R; ++r) groups.push_back(stretches(order, N, R, r));
  return groups;
}

}  // namespace

Layout::Layout(Order order, int64_t N, int ring, int ulysses)
    : Layout(order, N, ulysses, groups_of(order, N, ring)) {}

Layout::Layout(Order order, int64_t N, int ulysses, std::vector<std::vector<Stretch>> groups)
    : order_(order),
      N_(N),
      ring_(static_cast<int>(groups.size())),
      ulysses_(ulysses),
      groups_(std::move(groups)) {
  FOVEA_CHECK(ulysses >= 1, "layout: groups of ", ulysses, " ranks");
}

std::vector<Stretch> Layout::rank(int ring, int ulysses) const {
  const Shards cut = shards(ring);
  std::vector<Stretch> own;
  int64_t at = 0;
  for (const auto& [place, count] : group(ring)) {
    const int64_t begin = std::clamp<int64_t>(cut.begin(ulysses) - at, 0, count),
                  end = std::clamp<int64_t>(cut.end(ulysses) - at, 0, count);
    if (begin < end) own.push_back({{place.of(begin), place.stride}, end - begin});
    at += count;
  }
  return own;
}

int64_t Layout::most_tokens() const {
  int64_t most = 0;
  for (int r = 0; r < ring_; ++r) most = std::max(most, group_tokens(r));
  return most;
}

Tensor Layout::take(const Tensor& whole, int axis, int ring, int ulysses) const {
  Shape shape = whole.shape();
  shape[axis] = shards(ring).length(ulysses);
  const Tensor part = Tensor::empty(shape, whole.dtype(), whole.device());
  int64_t at = 0;
  for (const auto& [place, count] : rank(ring, ulysses)) {
    part.slice(axis, at, at + count).copy_(attention::take(whole, axis, place, count));
    at += count;
  }
  return part;
}

void Layout::put(const Tensor& whole, int axis, const Tensor& part, int ring, int ulysses) const {
  int64_t at = 0;
  for (const auto& [place, count] : rank(ring, ulysses)) {
    attention::put(whole, axis, place, part.slice(axis, at, at + count));
    at += count;
  }
}

namespace {

// Allowed pairs of a tile of a part of n x m.
struct Tile {
  int64_t i0, i1, j0, j1;
};
int64_t pairs_in(const attention::Mask& mask, int64_t b, const Tile& t, int64_t n, int64_t m) {
  constexpr int64_t kSmall = 32;  // sides of a tile that is counted pair by pair
  const int64_t rows = t.i1 - t.i0, columns = t.j1 - t.j0;
  if (rows == 0 || columns == 0) return 0;
  const attention::TileClass kind = mask.classify(b, 0, t.i0, t.i1, t.j0, t.j1, n, m);
  if (kind == attention::TileClass::skip) return 0;
  if (kind == attention::TileClass::full) return rows * columns;
  if (std::max(rows, columns) > kSmall) {
    Tile first = t, second = t;
    if (rows > columns)
      first.i1 = second.i0 = t.i0 + rows / 2;
    else
      first.j1 = second.j0 = t.j0 + columns / 2;
    return pairs_in(mask, b, first, n, m) + pairs_in(mask, b, second, n, m);
  }
  int64_t pairs = 0;
  for (int64_t i = t.i0; i < t.i1; ++i)
    for (int64_t j = t.j0; j < t.j1; ++j) pairs += mask.allowed(b, 0, i, j, n, m) ? 1 : 0;
  return pairs;
}

// Allowed pairs of stretches of queries and keys, of one sample and head.
int64_t area(const attention::Mask& whole, int64_t b, int64_t h, int64_t N,
             const std::vector<Stretch>& queries, const std::vector<Stretch>& keys) {
  int64_t pairs = 0;
  for (const auto& [query, n] : queries) {
    for (const auto& [key, m] : keys) {
      const attention::Mask mask = whole.part({query, key, N, N, h, h + 1}, 1, n, m);
      if (!mask.is_interval()) {
        pairs += pairs_in(mask, b, {0, n, 0, m}, n, m);
        continue;
      }
      for (int64_t i = 0; i < n; ++i) {
        int64_t first, last;
        mask.limits(i, n, m, first, last);
        pairs += last - first;
      }
    }
  }
  return pairs;
}

}  // namespace

Layout Layout::dispatched(const attention::Mask& mask, int64_t batch, int64_t N, int64_t chunk,
                          int ring, int ulysses) {
  FOVEA_CHECK(N >= 0 && ring >= 1 && chunk >= 1, "layout: ", N, " tokens in chunks of ", chunk,
              " over a ring of ", ring);
  const attention::Mask::Parts parts = mask.parts();
  const int64_t samples = parts.query_documents.defined() || parts.ranges.defined() ? batch : 1,
                heads = parts.blocks.defined() ? parts.blocks.dim(0) : 1,
                chunks = (N + chunk - 1) / chunk, share = (chunks + ring - 1) / ring;
  struct Chunk {
    Stretch tokens;
    int64_t area;
  };
  std::vector<Chunk> all;
  for (int64_t c = 0; c < chunks; ++c) {
    const Stretch tokens{{c * chunk, 1}, std::min(chunk, N - c * chunk)};
    int64_t pairs = 0;
    for (int64_t b = 0; b < samples; ++b)
      for (int64_t h = 0; h < heads; ++h) pairs += area(mask, b, h, N, {tokens}, {{{}, N}});
    all.push_back({tokens, pairs});
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Chunk& a, const Chunk& b) { return a.area > b.area; });
  struct Group {
    int64_t area = 0;
    std::vector<Stretch> tokens = {};
  };
  std::vector<Group> groups(static_cast<size_t>(ring));
  for (const Chunk& c : all) {
    Group* least = nullptr;
    for (Group& g : groups) {
      if (static_cast<int64_t>(g.tokens.size()) < share &&
          (least == nullptr || g.area < least->area ||
           (g.area == least->area && g.tokens.size() < least->tokens.size())))
        least = &g;
    }
    least->area += c.area;
    least->tokens.push_back(c.tokens);
  }
  std::vector<std::vector<Stretch>> joined;
  for (Group& g : groups) {
    std::sort(g.tokens.begin(), g.tokens.end(),
              [](const Stretch& a, const Stretch& b) { return a.place.base < b.place.base; });
    joined.emplace_back();
    for (const Stretch& s : g.tokens) {
      if (!joined.back().empty() &&
          joined.back().back().place.of(joined.back().back().count) == s.place.base) {
        joined.back().back().count += s.count;
      } else {
        joined.back().push_back(s);
      }
    }
  }
  return Layout(Order::dispatched, N, ulysses, std::move(joined));
}

int64_t pairs_of(const attention::Mask& mask, int64_t N, int64_t b, int64_t h) {
  return area(mask, b, h, N, {{{}, N}}, {{{}, N}});
}

Balance balance(const Layout& layout, const attention::Mask& mask, int64_t b, int64_t h) {
  const int R = layout.ring();
  std::vector<int64_t> of_group(static_cast<size_t>(R)), of_step(static_cast<size_t>(R));
  int64_t total = 0;
  for (int r = 0; r < R; ++r) {
    for (int s = 0; s < R; ++s) {
      const int64_t pairs =
          area(mask, b, h, layout.tokens(), layout.group(r), layout.group((r - s + R) % R));
      of_group[static_cast<size_t>(r)] += pairs;
      of_step[static_cast<size_t>(s)] = std::max(of_step[static_cast<size_t>(s)], pairs);
      total += pairs;
    }
  }
  if (total == 0) return {1.0, 1.0};
  int64_t steps = 0;
  for (const int64_t pairs : of_step) steps += pairs;
  const double mean = static_cast<double>(total) / R;
  return {static_cast<double>(*std::max_element(of_group.begin(), of_group.end())) / mean,
          static_cast<double>(steps) / mean};
}

}  // namespace fovea::distributed
