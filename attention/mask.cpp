// SPDX-License-Identifier: Apache-2.0
#include "attention/mask.h"

#include <algorithm>
#include <limits>

namespace fovea::attention {

Mask& Mask::causal() {
  causal_ = true;
  return *this;
}

Mask& Mask::window(int64_t left, int64_t right) {
  FOVEA_CHECK(left >= -1 && right >= -1, "mask: window [", left, ", ", right,
              "]; expected -1 (unbounded) or more");
  left_ = left;
  right_ = right;
  return *this;
}

Mask& Mask::prefix(int64_t tokens) {
  FOVEA_CHECK(tokens >= 0, "mask: prefix of ", tokens, " tokens");
  prefix_ = tokens;
  return *this;
}

Mask& Mask::documents(const Tensor& queries, const Tensor& keys) {
  query_documents_ = queries.contiguous();
  key_documents_ = keys.contiguous();
  return *this;
}

Mask& Mask::block_sparse(const Tensor& allowed, int64_t query_block, int64_t key_block) {
  FOVEA_CHECK(query_block >= 1 && key_block >= 1, "mask: blocks of ", query_block, " x ",
              key_block);
  blocks_ = allowed.contiguous();
  query_block_ = query_block;
  key_block_ = key_block;
  return *this;
}

Mask& Mask::ranges(const Tensor& ranges) {
  ranges_ = ranges.contiguous();
  return *this;
}

Mask Mask::to(Device device) const {
  Mask moved = *this;
  for (Tensor* t : {&moved.query_documents_, &moved.key_documents_, &moved.blocks_, &moved.ranges_})
    if (t->defined()) *t = t->to(device);
  return moved;
}

Mask Mask::part(const Places& places, int64_t heads, int64_t queries, int64_t keys) const {
  FOVEA_CHECK(!places_, "mask: a part of a part; take the part of the whole");
  const auto check = [](const char* side, const Place& place, int64_t count, int64_t whole) {
    FOVEA_CHECK(place.base >= 0 && place.stride >= 1 && (count == 0 || place.of(count - 1) < whole),
                "mask: ", count, ' ', side, " from ", place.base, " on, every ", place.stride,
                ", leave the whole's ", whole);
  };
  check("queries", places.queries, queries, places.N);
  check("keys", places.keys, keys, places.M);
  FOVEA_CHECK(places.first_head >= 0 && places.first_head + heads <= places.heads, "mask: heads ",
              places.first_head, " to ", places.first_head + heads, " of ", places.heads);
  Mask part = *this;
  if (query_documents_.defined()) {
    part.query_documents_ = take(query_documents_, 1, places.queries, queries).contiguous();
    part.key_documents_ = take(key_documents_, 1, places.keys, keys).contiguous();
  }
  if (blocks_.defined() && blocks_.dim(0) > 1)
    part.blocks_ = blocks_.slice(0, places.first_head, places.first_head + heads);
  if (ranges_.defined()) part.ranges_ = take(ranges_, 1, places.queries, queries).contiguous();
  part.places_ = places;
  return part;
}

void Mask::validate(int64_t batch, int64_t heads, int64_t queries, int64_t keys) const {
  const auto [query_place, key_place, N, M, first_head, all_heads] = places(heads, queries, keys);
  FOVEA_CHECK(!causal_ || N <= M, "mask: causal attention needs N <= M, found N ", N, ", M ", M);
  FOVEA_CHECK(prefix_ <= M, "mask: prefix of ", prefix_, " tokens, but there are ", M, " keys");
  if (query_documents_.defined()) {
    FOVEA_CHECK(query_documents_.dtype() == Dtype::i32 &&
                    query_documents_.shape() == (Shape{batch, queries}) &&
                    key_documents_.dtype() == Dtype::i32 &&
                    key_documents_.shape() == (Shape{batch, keys}),
                "mask: documents are ", query_documents_.shape(), " and ", key_documents_.shape(),
                "; expected i32 [", batch, ", ", queries, "] and [", batch, ", ", keys, ']');
  }
  if (blocks_.defined()) {
    const int64_t rows = (N + query_block_ - 1) / query_block_,
                  columns = (M + key_block_ - 1) / key_block_;
    FOVEA_CHECK(blocks_.dtype() == Dtype::u8 && blocks_.rank() == 3 &&
                    (blocks_.dim(0) == 1 || blocks_.dim(0) == heads) && blocks_.dim(1) == rows &&
                    blocks_.dim(2) == columns,
                "mask: block mask is ", blocks_.shape(), "; expected u8 [", heads, " or 1, ", rows,
                ", ", columns, ']');
  }
  FOVEA_CHECK(!ranges_.defined() || (ranges_.dtype() == Dtype::i32 && ranges_.rank() == 3 &&
                                     (ranges_.dim(0) == 1 || ranges_.dim(0) == batch) &&
                                     ranges_.dim(1) == queries && ranges_.dim(2) == 4),
              "mask: ranges are ", ranges_.dtype(), ' ', ranges_.shape(), "; expected i32 [", batch,
              " or 1, ", queries, ", 4]");
}

void Mask::limits(int64_t i, int64_t queries, int64_t keys, int64_t& first, int64_t& last) const {
  const Places at = places(1, queries, keys);
  const auto before = [&](int64_t position) {  // how many keys are
    const int64_t distance = position - at.keys.base;
    if (distance <= 0) return int64_t{0};
    return std::min(keys, at.keys.stride == 1 ? distance : (distance - 1) / at.keys.stride + 1);
  };
  const int64_t position = at.query_positions().of(i);
  first = left_ >= 0 ? before(position - left_) : 0;
  last = right_ >= 0 ? before(position + right_ + 1) : keys;
  if (causal_) last = std::min(last, before(std::max(prefix_, position + 1)));
  last = std::max(first, last);
}

bool Mask::allowed(int64_t b, int64_t h, int64_t i, int64_t j, int64_t queries,
                   int64_t keys) const {
  int64_t first, last;
  limits(i, queries, keys, first, last);
  if (j < first || j >= last) return false;
  if (query_documents_.defined()) {
    const int32_t document = query_documents_.data<int32_t>()[b * queries + i];
    if (document < 0 || document != key_documents_.data<int32_t>()[b * keys + j]) return false;
  }
  if (blocks_.defined()) {
    const Places at = places(1, queries, keys);
    const int64_t head = blocks_.dim(0) == 1 ? 0 : h, row = at.queries.of(i) / query_block_,
                  column = at.keys.of(j) / key_block_;
    if (blocks_.data<uint8_t>()[(head * blocks_.dim(1) + row) * blocks_.dim(2) + column] == 0)
      return false;
  }
  if (ranges_.defined()) {
    const int32_t* range = ranges_of(b, i, queries);
    const int64_t key = places(1, queries, keys).keys.of(j);
    if ((key < range[0] || key >= range[1]) && (key < range[2] || key >= range[3])) return false;
  }
  return true;
}

TileClass Mask::classify(int64_t b, int64_t h, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                         int64_t queries, int64_t keys) const {
  // Both limits grow with i, so the first and the last query bound those between.
  int64_t first_low, last_low, first_high, last_high;
  limits(i0, queries, keys, first_low, last_low);
  limits(i1 - 1, queries, keys, first_high, last_high);
  if (j1 <= first_low || j0 >= last_high) return TileClass::skip;
  bool full = j0 >= first_high && j1 <= last_low;
  if (query_documents_.defined()) {
    const auto range = [](const int32_t* ids, int64_t begin, int64_t end) {
      return std::minmax_element(ids + begin, ids + end);
    };
    const auto [qmin, qmax] = range(query_documents_.data<int32_t>() + b * queries, i0, i1);
    const auto [kmin, kmax] = range(key_documents_.data<int32_t>() + b * keys, j0, j1);
    if (*qmax < *kmin || *kmax < *qmin || *qmax < 0 || *kmax < 0) return TileClass::skip;
    full = full && *qmin == *qmax && *kmin == *kmax && *qmin == *kmin && *qmin >= 0;
  }
  if (blocks_.defined()) {
    bool any = false, all = true;
    const uint8_t* head =
        blocks_.data<uint8_t>() + (blocks_.dim(0) == 1 ? 0 : h) * blocks_.dim(1) * blocks_.dim(2);
    const Places at = places(1, queries, keys);
    for (int64_t r = at.queries.of(i0) / query_block_; r <= at.queries.of(i1 - 1) / query_block_;
         ++r) {
      for (int64_t c = at.keys.of(j0) / key_block_; c <= at.keys.of(j1 - 1) / key_block_; ++c) {
        const bool on = head[r * blocks_.dim(2) + c] != 0;
        any |= on;
        all &= on;
      }
    }
    if (!any) return TileClass::skip;
    full = full && all;
  }
  if (ranges_.defined()) {
    const Place place = places(1, queries, keys).keys;
    const int64_t k0 = place.of(j0), k1 = place.of(j1 - 1) + 1;
    bool any = false, all = true;
    for (int64_t i = i0; i < i1; ++i) {
      const int32_t* range = ranges_of(b, i, queries);
      any |= (k0 < range[1] && k1 > range[0]) || (k0 < range[3] && k1 > range[2]);
      all &= (k0 >= range[0] && k1 <= range[1]) || (k0 >= range[2] && k1 <= range[3]);
    }
    if (!any) return TileClass::skip;
    full = full && all;
  }
  return full ? TileClass::full : TileClass::partial;
}

}  // namespace fovea::attention
