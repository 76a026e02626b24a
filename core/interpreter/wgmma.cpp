// SPDX-License-Identifier: Apache-2.0
// Products of warpgroups. Each warp computes its 16 rows of one when it waits for it.
#include <bit>
#include <cstring>
#include <utility>

#include "core/interpreter/async.h"

namespace fovea::interpreted {
namespace {

constexpr int kRows = 16, kDepth = 16, kWidest = 256;  // of a warp's part
constexpr int kChunk = 8;                              // values of 2 bytes
// In an accumulator that is under way.
constexpr uint32_t kPoison = 0x7fc0dead;

// f(address, index, index along k) for each chunk of an operand's 16 of k and `count` rows of m or
// n from `first` on: of 8 values along k (K-major) or along m or n.
template <typename F>
void for_chunks(const Descriptor& d, Major major, int first, int count, F f) {
  const int span = span_bytes(d.swizzle), chunks = span / 16;
  const int next_k = d.swizzle == Swizzle::none ? d.leading_bytes : 16;
  for (int i = 0; i < count * 2; ++i) {
    int64_t offset = 0;
    int row = 0, k = 0;
    if (major == Major::k) {
      row = first + i / 2;
      k = i % 2 * kChunk;
      offset = int64_t{row / 8} * d.stride_bytes + row % 8 * span + i % 2 * next_k;
    } else {
      const int chunk = first / kChunk + i / kDepth;
      row = chunk * kChunk;
      k = i % kDepth;
      offset = int64_t{chunk / chunks} * d.leading_bytes + chunk % chunks * 16 +
               int64_t{k / 8} * d.stride_bytes + k % 8 * span;
    }
    f(swizzled(d.at + offset, d.swizzle), row, k);
  }
}

// The chunks that a warp of a warpgroup answers for: its rows of a, and every fourth of b.
template <typename F>
void for_own_chunks(const Product& p, int warp, F f) {
  if (!p.in_registers)
    for_chunks(p.a, p.a_major, warp * kRows, kRows,
               [&](std::byte* at, int, int) { f(*p.a.span, at); });
  int i = 0;
  for_chunks(p.b, p.b_major, 0, p.n, [&](std::byte* at, int, int) {
    if (i++ % kWarpsOfGroup == warp) f(*p.b.span, at);
  });
}

float value(const std::byte* at) {
  uint16_t bits = 0;
  std::memcpy(&bits, at, 2);
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

// An operand as to[row][k], or as to[k][row] with rows `pitch` apart.
void load_rows(const Descriptor& d, Major major, int first, int count, float* to, int row_pitch,
               int k_pitch) {
  for_chunks(d, major, first, count, [&](const std::byte* at, int row, int k) {
    const int pitch = major == Major::k ? k_pitch : row_pitch;
    float* chunk = to + (row - first) * row_pitch + k * k_pitch;
    for (int i = 0; i < kChunk; ++i) chunk[i * pitch] = value(at + 2 * i);
  });
}

// A warp's accumulators [16, n], between its lanes and a matrix.
template <typename F>
void for_accumulators(int n, F f) {
  for (int lane = 0; lane < kWarp; ++lane)
    for (int i = 0; i < n / 2; ++i)
      f(lane, i, lane / 4 + 8 * (i >> 1 & 1), 8 * (i >> 2) + 2 * (lane % 4) + (i & 1));
}

struct Lane {
  Started* started;
};

void multiply(float (&d)[kRows][kWidest], Lane* const* lanes, size_t i, int warp) {
  const Product& p = lanes[0]->started->products[i];
  alignas(64) float a[kRows][kDepth], b[kDepth][kWidest];
  if (p.in_registers) {
    for (int lane = 0; lane < kWarp; ++lane)
      for (int r = 0; r < 4; ++r) {
        const uint32_t pair = lanes[lane]->started->products[i].a_registers[static_cast<size_t>(r)];
        float* to = &a[lane / 4 + 8 * (r & 1)][2 * (lane % 4) + 8 * (r >> 1)];
        to[0] = low_half(pair);
        to[1] = high_half(pair);
      }
  } else {
    load_rows(p.a, p.a_major, warp * kRows, kRows, &a[0][0], kDepth, 1);
  }
  load_rows(p.b, p.b_major, 0, p.n, &b[0][0], 1, kWidest);
  for (int m = 0; m < kRows; ++m) {
    alignas(64) float sum[kWidest];
    const int n = p.n;
    std::fill(sum, sum + n, 0.0f);
    for (int k = 0; k < kDepth; ++k)
      for (int j = 0; j < n; ++j) sum[j] += a[m][k] * b[k][j];
    for (int j = 0; j < n; ++j) d[m][j] += sum[j];
  }
}

// The next product after i that adds to the same accumulators; 0: none.
size_t next_of(const std::vector<Product>& products, size_t i) {
  for (size_t j = i + 1; j < products.size(); ++j)
    if (products[j].d == products[i].d) return j;
  return 0;
}

// The warp's products before `end`.
void finish(Lane* const* lanes, size_t end, const Where& where) {
  Thread& t = thread();
  const int warp = t.warp % kWarpsOfGroup, first = t.id - t.lane;
  alignas(64) float d[kRows][kWidest];
  size_t held = end;  // the product that d is for
  const std::vector<Product>& products = lanes[0]->started->products;
  for (size_t i = 0; i < end; ++i) {
    const Product& p = products[i];
    if (!p.accumulate) {
      for (auto& row : d) std::fill(row, row + p.n, 0.0f);
    } else if (held != i) {
      for_accumulators(p.n, [&](int lane, int v, int row, int column) {
        d[row][column] = lanes[lane]->started->products[i].saved[static_cast<size_t>(v)];
      });
    }
    multiply(d, lanes, i, warp);
    // Of the last lane that came, whose clock the meeting has moved on.
    for_own_chunks(p, warp, [&](Span& span, const std::byte* at) {
      end_async_read(span, at, 16, first, t.clock - 1);
    });
    const size_t next = next_of(products, i);
    held = next;
    if (next == i + 1 && next < end) continue;
    if (next != 0) {
      for (int lane = 0; lane < kWarp; ++lane)
        lanes[lane]->started->products[next].saved.resize(static_cast<size_t>(p.n) / 2);
      for_accumulators(p.n, [&](int lane, int v, int row, int column) {
        lanes[lane]->started->products[next].saved[static_cast<size_t>(v)] = d[row][column];
      });
      held = end;
      continue;
    }
    for_accumulators(p.n, [&](int lane, int v, int row, int column) {
      float& to = lanes[lane]->started->products[i].d[v];
      if (std::bit_cast<uint32_t>(to) != kPoison)
        fault(concat("lane ", lane, " changed the accumulators of the wgmma at ",
                     short_file(p.where), " before this wgmma_wait"),
              where);
      to = d[row][column];
    });
    held = end;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    std::vector<Product>& done = lanes[lane]->started->products;
    done.erase(done.begin(), done.begin() + static_cast<ptrdiff_t>(end));
  }
}

}  // namespace

bool reads(const Product& p, int warp, const std::byte* at, size_t bytes) {
  bool found = false;
  for_own_chunks(p, warp, [&](Span&, const std::byte* chunk) {
    found |= chunk < at + bytes && at < chunk + 16;
  });
  return found;
}

Descriptor tile_descriptor(SharedTile tile, Swizzle swizzle, int leading_bytes, int stride_bytes,
                           const Where& where) {
  check_tile(tile, swizzle, "tile_descriptor", where);
  if (leading_bytes % 16 != 0 || stride_bytes % 16 != 0)
    fault(concat("tile_descriptor: distances of ", leading_bytes, " and ", stride_bytes,
                 " bytes; expected multiples of 16"),
          where);
  return {tile.span, tile.at, swizzle, leading_bytes, stride_bytes};
}

void wgmma_fence() {
  Thread& t = thread();
  t.block->async().of(t).fenced = true;
}

void start_product(float* d, int n, const uint32_t* a_registers, const Descriptor& a, Major a_major,
                   const Descriptor& b, Major b_major, bool accumulate, const Where& where) {
  Thread& t = thread();
  Async& async = t.block->async();
  Started& mine = async.of(t);
  if ((a_registers == nullptr && a_major == Major::mn && a.swizzle == Swizzle::none) ||
      (b_major == Major::mn && b.swizzle == Swizzle::none))
    fault("wgmma of an MN-major tile with no swizzle", where);
  if (!mine.fenced) fault("wgmma with no wgmma_fence since the last wgmma_commit", where);
  Product p{};
  p.d = d;
  p.n = n;
  p.in_registers = a_registers != nullptr;
  p.accumulate = accumulate;
  if (p.in_registers) std::copy(a_registers, a_registers + 4, p.a_registers.begin());
  p.a = a;
  p.b = b;
  p.a_major = a_major;
  p.b_major = b_major;
  p.group = mine.product_group;
  p.where = where;
  const bool starts = std::none_of(mine.products.begin(), mine.products.end(),
                                   [&](const Product& other) { return other.d == d; });
  if (starts) {
    if (accumulate) p.saved.assign(d, d + n / 2);
    std::fill(d, d + n / 2, std::bit_cast<float>(kPoison));
  }
  if (t.lane == 0) {
    async.count_product(t, p);
    for_own_chunks(p, t.warp % kWarpsOfGroup, [&](Span& span, const std::byte* at) {
      begin_async_read(span, at, 16, "wgmma reads", where);
    });
  }
  mine.products.push_back(std::move(p));
}

void wgmma_commit(Where) {
  Thread& t = thread();
  Started& mine = t.block->async().of(t);
  ++mine.product_group;
  mine.fenced = false;
}

void finish_products(int left, const Where& where) {
  Thread& t = thread();
  Lane mine{&t.block->async().of(t)};
  warp_operation(
      "wgmma_wait", kAllLanes, mine,
      [&](Lane* const* lanes) {
        const Started& first = *lanes[0]->started;
        for (int lane = 1; lane < kWarp; ++lane) {
          const Started* other = lanes[lane] == nullptr ? nullptr : lanes[lane]->started;
          if (other == nullptr || other->products.size() != first.products.size() ||
              other->product_group != first.product_group)
            fault(concat("wgmma_wait: lane ", lane, " of the warp has started other products"),
                  where);
        }
        size_t end = 0;
        while (end < first.products.size() &&
               first.products[end].group < first.product_group - left)
          ++end;
        finish(lanes, end, where);
      },
      where);
}

}  // namespace fovea::interpreted
