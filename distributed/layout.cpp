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

Shards lengths(Order order, int64_t N, int R) {
  FOVEA_CHECK(N >= 0 && R >= 1, "layout: ", N, " tokens over a ring of ", R);
  std::vector<int64_t> all;
  for (int r = 0; r < R; ++r) {
    all.push_back(0);
    for (const Stretch& s : stretches(order, N, R, r)) all.back() += s.count;
  }
  return Shards(all);
}

}  // namespace

Layout::Layout(Order order, int64_t N, int ring, int ulysses)
    : order_(order),
      N_(N),
      ring_(ring),
      ulysses_(ulysses),
      shards_of_groups_(lengths(order, N, ring)) {
  FOVEA_CHECK(ulysses >= 1, "layout: groups of ", ulysses, " ranks");
}

std::vector<Stretch> Layout::group(int ring) const { return stretches(order_, N_, ring_, ring); }

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

// Allowed pairs of stretches of queries and keys.
int64_t area(const attention::Mask& whole, int64_t b, int64_t h, int64_t N,
             const std::vector<Stretch>& queries, const std::vector<Stretch>& keys) {
  int64_t pairs = 0;
  for (const auto& [query, n] : queries) {
    for (const auto& [key, m] : keys) {
      const attention::Mask mask = whole.part({query, key, N, N, h, h + 1}, 1, n, m);
      for (int64_t i = 0; i < n; ++i) {
        int64_t first, last;
        mask.limits(i, n, m, first, last);
        if (mask.is_interval()) {
          pairs += last - first;
        } else {
          for (int64_t j = first; j < last; ++j) pairs += mask.allowed(b, 0, i, j, n, m) ? 1 : 0;
        }
      }
    }
  }
  return pairs;
}

}  // namespace

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
