// SPDX-License-Identifier: Apache-2.0
#include "core/interpreter/hopper.h"

#include <cstring>

#include "core/interpreter/async.h"

namespace fovea::interpreted {
namespace {

constexpr int kUnit = 16;  // bytes

Async& async() { return thread().block->async(); }

// The box of a map at coordinates: f(offset in the tile, address in the tensor) for each piece of
// 16 bytes that begins in the tensor, and how many of its bytes lie there; null and 0 for the
// others.
template <typename F>
void for_pieces(const TensorMapFacts& map, const std::array<int64_t, 5>& at, F f) {
  const int64_t element = size_of(map.dtype), row = map.box[0] * element;
  int64_t rows = 1;
  for (size_t i = 1; i < map.rank; ++i) rows *= map.box[i];
  for (int64_t r = 0; r < rows; ++r) {
    bool inside = true;
    int64_t left = r, offset = 0;
    for (size_t i = 1; i < map.rank; ++i) {
      const int64_t x = at[i] + left % map.box[i];
      left /= map.box[i];
      inside = inside && x >= 0 && x < map.dims[i];
      offset += x * map.strides[i - 1];
    }
    for (int64_t piece = 0; piece < row; piece += kUnit) {
      const int64_t first = at[0] * element + piece, end = map.dims[0] * element;
      const int64_t before = std::clamp<int64_t>(-first, 0, kUnit),
                    bytes = std::clamp<int64_t>(end - first, 0, kUnit);
      const auto* base = static_cast<const std::byte*>(map.base) + offset + first;
      if (inside && before < bytes)
        f(r * row + piece, const_cast<std::byte*>(base), before, bytes);
      else
        f(r * row + piece, nullptr, int64_t{0}, int64_t{0});
    }
  }
}

TensorMapFacts facts_at(const TensorMap& map, std::initializer_list<int64_t> at, const char* verb,
                        std::array<int64_t, 5>& coordinates, const Where& where) {
  const TensorMapFacts facts = facts_of(map);
  if (facts.rank != at.size())
    fault(concat(verb, " with ", at.size(), " coordinates of a map of ", int{facts.rank}, " dims"),
          where);
  std::copy(at.begin(), at.end(), coordinates.begin());
  return facts;
}

void check_bulk(const void* global, SharedTile tile, int bytes, const char* verb,
                const Where& where) {
  if (bytes <= 0 || bytes % kUnit != 0)
    fault(concat(verb, " of ", bytes, " bytes; expected a multiple of 16"), where);
  if (reinterpret_cast<uintptr_t>(global) % kUnit != 0)
    fault(concat(verb, ": the device memory is not aligned to 16 bytes"), where);
  if (reinterpret_cast<uintptr_t>(tile.at) % kUnit != 0)
    fault(concat(verb, ": the shared memory is not aligned to 16 bytes"), where);
}

// += of whole floats.
void add_floats(std::byte* to, const std::byte* values, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 4) {
    float value = 0.0f;
    std::memcpy(&value, values + i, 4);
    std::atomic_ref<float>(*reinterpret_cast<float*>(to + i)).fetch_add(value);
  }
}

void put(const Allocation* block, std::byte* to, const std::byte* values, int64_t bytes, bool add) {
  if (add) return add_floats(to, values, bytes);
  std::memcpy(to, values, static_cast<size_t>(bytes));
  std::memset(block->written.get() + (to - block->begin), 1, static_cast<size_t>(bytes));
}

void check_target(const Allocation* block, const void* to, int64_t bytes, bool add,
                  const Where& where) {
  if (add)
    check_written(block, to, static_cast<size_t>(bytes), 4, where);
  else
    check_global(block, to, static_cast<size_t>(bytes), 1, "writes", where);
}

}  // namespace

// ---- barriers -----------------------------------------------------------------------------------

void barrier_init(const Shared<Barrier>& b, int count, Where where) {
  async().make_barrier(b, count, where);
}
void fence_barrier_init() { async().fence_barriers(thread()); }
void barrier_arrive(const Shared<Barrier>& b, Where where) {
  Thread& t = thread();
  async().arrive(async().barrier(b, t, "barrier_arrive", where), t, 0, where);
}
void barrier_arrive_expect(const Shared<Barrier>& b, int bytes, Where where) {
  Thread& t = thread();
  async().arrive(async().barrier(b, t, "barrier_arrive_expect", where), t, bytes, where);
}
void barrier_wait(const Shared<Barrier>& b, unsigned parity, Where where) {
  Thread& t = thread();
  t.polled = nullptr;
  async().wait(async().barrier(b, t, "barrier_wait", where), t, parity, where);
}

// ---- copies -------------------------------------------------------------------------------------

void check_tile(SharedTile tile, Swizzle swizzle, const char* verb, const Where& where) {
  const int alignment = tile_alignment(swizzle);
  constexpr int kStatic = 128;  // what static arrays are aligned to
  if (tile.span != &thread().block->dynamic_span() && alignment > kStatic)
    fault(concat(verb, ": a tile with a swizzle of ", span_bytes(swizzle),
                 " bytes in the static array \"", tile.span->name, "\"; expected dynamic_shared"),
          where);
  if (reinterpret_cast<uintptr_t>(tile.at) % static_cast<uintptr_t>(alignment) != 0)
    fault(concat(verb, ": a tile ",
                 swizzle == Swizzle::none
                     ? ""
                     : concat("with a swizzle of ", span_bytes(swizzle), " bytes "),
                 "begins at byte ", tile.at - tile.span->begin, " of shared memory \"",
                 tile.span->name, "\"; expected a multiple of ", alignment),
          where);
}

void fence_async() {
  Thread& t = thread();
  async().of(t).fences.push_back(t.clock++);
}

void load_tile(SharedTile to, const TensorMap& map, const Shared<Barrier>& b,
               std::initializer_list<int64_t> coordinates, const Where& where) {
  std::array<int64_t, 5> at{};
  const TensorMapFacts facts = facts_at(map, coordinates, "load_tile", at, where);
  check_tile(to, facts.swizzle, "load_tile", where);
  const Allocation* block = find_allocation(facts.base);
  for_pieces(facts, at, [&](int64_t, const std::byte* from, int64_t before, int64_t bytes) {
    if (from != nullptr)
      check_written(block, from + before, static_cast<size_t>(bytes - before), 1, where);
  });
  Thread& t = thread();
  async().load(
      async().barrier(b, t, "load_tile", where), t, to, facts.box_bytes(), "load_tile",
      [=] {
        for_pieces(
            facts, at, [&](int64_t offset, const std::byte* from, int64_t before, int64_t bytes) {
              std::byte* chunk = swizzled(to.at + offset, facts.swizzle);
              std::memset(chunk, 0, kUnit);
              if (from != nullptr)
                std::memcpy(chunk + before, from + before, static_cast<size_t>(bytes - before));
            });
      },
      where);
}

void write_tile(const TensorMap& map, SharedTile from, bool add,
                std::initializer_list<int64_t> coordinates, const Where& where) {
  const char* verb = add ? "add_tile" : "store_tile";
  std::array<int64_t, 5> at{};
  const TensorMapFacts facts = facts_at(map, coordinates, verb, at, where);
  check_tile(from, facts.swizzle, verb, where);
  if (add && facts.dtype != Dtype::f32)
    fault(concat("add_tile of a map of ", facts.dtype, "; expected f32"), where);
  const Allocation* block = find_allocation(facts.base);
  for_pieces(facts, at, [&](int64_t, std::byte* to, int64_t before, int64_t bytes) {
    if (to != nullptr) check_target(block, to + before, bytes - before, add, where);
  });
  async().store(
      thread(), from, facts.box_bytes(), add ? "add_tile reads" : "store_tile reads",
      [=](const std::byte* values) {
        for_pieces(facts, at, [&](int64_t offset, std::byte* to, int64_t before, int64_t bytes) {
          if (to == nullptr) return;
          const auto chunk = swizzled(from.at + offset, facts.swizzle) - from.at;
          put(block, to + before, values + chunk + before, bytes - before, add);
        });
      },
      where);
}

void load_bulk(SharedTile to, const Allocation* block, const void* from, int bytes,
               const Shared<Barrier>& b, const Where& where) {
  check_bulk(from, to, bytes, "load_bulk", where);
  check_written(block, from, static_cast<size_t>(bytes), kUnit, where);
  Thread& t = thread();
  async().load(
      async().barrier(b, t, "load_bulk", where), t, to, bytes, "load_bulk",
      [=] { std::memcpy(to.at, from, static_cast<size_t>(bytes)); }, where);
}

void write_bulk(const Allocation* block, void* to, SharedTile from, int bytes, bool add,
                const Where& where) {
  const char* verb = add ? "add_bulk" : "store_bulk";
  check_bulk(to, from, bytes, verb, where);
  check_target(block, to, bytes, add, where);
  async().store(
      thread(), from, bytes, add ? "add_bulk reads" : "store_bulk reads",
      [=](const std::byte* values) { put(block, static_cast<std::byte*>(to), values, bytes, add); },
      where);
}

void commit_bulk() { ++async().of(thread()).store_group; }

// ---- registers, lanes ---------------------------------------------------------------------------

void set_registers(int n, bool increase, const Where& where) {
  warp_operation(
      increase ? "increase_registers" : "decrease_registers", kAllLanes, n,
      [&where](int* const* lanes) { async().set_registers(thread(), *lanes[0], where); }, where);
}

bool elect_lane(Where where) {
  int lane = 0;
  warp_operation(
      "elect_lane", kAllLanes, lane, [](int* const*) {}, where);
  return thread().lane == 0;
}

}  // namespace fovea::interpreted
