// SPDX-License-Identifier: Apache-2.0
// The policy of a card's memory, on a source that gives out addresses.
#include "core/caching_pool.h"

#include <gtest/gtest.h>

#include <iterator>
#include <random>
#include <vector>

namespace fovea {
namespace {

constexpr size_t kKiB = size_t{1} << 10, kMiB = size_t{1} << 20, kGiB = size_t{1} << 30;

// A card of `room` bytes, whose segments nobody touches.
class FakeCard final : public SegmentSource {
 public:
  explicit FakeCard(size_t room) : room_(room) {}
  void* take(size_t bytes) override {
    if (taken_ + bytes > room_) return nullptr;
    taken_ += bytes;
    auto* begin = reinterpret_cast<std::byte*>(next_);
    next_ += bytes;  // without a gap: blocks of two segments must not be joined all the same
    segments_[begin] = bytes;
    return begin;
  }
  void give(void* segment, size_t bytes) noexcept override {
    const auto found = segments_.find(static_cast<std::byte*>(segment));
    EXPECT_TRUE(found != segments_.end() && found->second == bytes) << "no such segment";
    if (found == segments_.end()) return;
    taken_ -= bytes;
    segments_.erase(found);
  }
  // Whether [begin, begin + bytes) lies in one segment.
  bool holds(const std::byte* begin, size_t bytes) const {
    auto next = segments_.upper_bound(const_cast<std::byte*>(begin));
    if (next == segments_.begin()) return false;
    const auto& [start, size] = *std::prev(next);
    return begin + bytes <= start + size;
  }
  size_t taken() const { return taken_; }

 private:
  size_t room_, taken_ = 0;
  uintptr_t next_ = kGiB;
  std::map<std::byte*, size_t> segments_;
};

TEST(CachingPool, RoundingLosesAtMostAnEighth) {
  EXPECT_EQ(CachingPool::rounded(0), 256U);
  EXPECT_EQ(CachingPool::rounded(256), 256U);
  EXPECT_EQ(CachingPool::rounded(257), 512U);
  EXPECT_EQ(CachingPool::rounded(kMiB - 1), kMiB);
  std::mt19937_64 random(1);
  for (int i = 0; i < 10000; ++i) {
    const size_t bytes = kMiB + random() % (kGiB >> (random() % 10));
    const size_t rounded = CachingPool::rounded(bytes);
    EXPECT_GE(rounded, bytes);
    EXPECT_LE(static_cast<double>(rounded), 1.125 * static_cast<double>(bytes)) << bytes;
    EXPECT_EQ(CachingPool::rounded(rounded), rounded);
  }
}

TEST(CachingPool, SmallRequestsShareSegments) {
  FakeCard card(kGiB);
  CachingPool pool(card);
  for (int i = 0; i < 4096; ++i) pool.allocate(1000);  // 1 KiB each
  EXPECT_EQ(pool.segments_taken(), 2);
  EXPECT_EQ(pool.reserved_bytes(), 4 * kMiB);
  EXPECT_EQ(pool.free_bytes(), 0U);
  pool.allocate(1);
  EXPECT_EQ(pool.segments_taken(), 3);
}

TEST(CachingPool, ARequestTakesTheSmallestBlockThatHoldsIt) {
  FakeCard card(kGiB);
  CachingPool pool(card);
  void* large = pool.allocate(8 * kMiB);
  void* wall = pool.allocate(1 * kMiB);
  void* middle = pool.allocate(5 * kMiB);
  void* other_wall = pool.allocate(1 * kMiB);
  pool.deallocate(large);
  pool.deallocate(middle);
  EXPECT_EQ(pool.allocate(4 * kMiB), middle);
  EXPECT_EQ(pool.allocate(1 * kMiB), static_cast<std::byte*>(middle) + 4 * kMiB);
  EXPECT_EQ(pool.allocate(6 * kMiB), large);
  EXPECT_EQ(pool.segments_taken(), 1);
  EXPECT_NE(wall, other_wall);
}

// Live blocks never overlap and lie in a segment; the counts add up; freed, everything is whole.
TEST(CachingPool, RandomRequestsKeepTheInvariants) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    std::mt19937_64 random(seed);
    FakeCard card(2 * kGiB);
    CachingPool pool(card);
    std::map<std::byte*, size_t> live;
    size_t live_bytes = 0, most_live = 0;
    for (int i = 0; i < 4000; ++i) {
      if (live.empty() || random() % 5 < 3) {
        const size_t most = size_t{1} << (8 + random() % 18);  // up to 32 MiB
        const size_t bytes = random() % most;
        auto* block = static_cast<std::byte*>(pool.allocate(bytes));
        if (block == nullptr) {
          EXPECT_GT(live_bytes + bytes, kGiB);  // refused only when well filled
          continue;
        }
        const size_t size = CachingPool::rounded(bytes);
        ASSERT_EQ(reinterpret_cast<uintptr_t>(block) % 256, 0U);
        ASSERT_TRUE(card.holds(block, size));
        const auto [at, is_new] = live.emplace(block, size);
        ASSERT_TRUE(is_new);
        const auto next = std::next(at);
        const bool after =
            at == live.begin() || std::prev(at)->first + std::prev(at)->second <= block;
        const bool before = next == live.end() || block + size <= next->first;
        ASSERT_TRUE(after && before);
        live_bytes += size;
      } else {
        const auto at = std::next(live.begin(), static_cast<int64_t>(random() % live.size()));
        pool.deallocate(at->first);
        live_bytes -= at->second;
        live.erase(at);
      }
      most_live = std::max(most_live, live_bytes);
      ASSERT_EQ(pool.reserved_bytes(), card.taken());
      ASSERT_EQ(pool.free_bytes() + live_bytes, pool.reserved_bytes());
      ASSERT_LE(pool.largest_free_bytes(), pool.free_bytes());
    }
    EXPECT_LE(pool.reserved_bytes(), 2 * most_live + 64 * kMiB) << seed;
    for (const auto& [block, size] : live) pool.deallocate(block);
    EXPECT_EQ(pool.free_bytes(), pool.reserved_bytes());
    pool.release();
    EXPECT_EQ(pool.reserved_bytes(), 0U);
    EXPECT_EQ(pool.segments(), 0U);
    EXPECT_EQ(card.taken(), 0U);
    EXPECT_EQ(pool.largest_free_bytes(), 0U);
  }
}

TEST(CachingPool, WithoutRoomItGivesBackWhatIsFreeAndAsksForLess) {
  FakeCard card(40 * kMiB);
  CachingPool pool(card);
  void* block = pool.allocate(24 * kMiB);
  EXPECT_EQ(pool.allocate(20 * kMiB), nullptr);
  pool.deallocate(block);
  EXPECT_NE(pool.allocate(36 * kMiB), nullptr);  // in place of the 24 MiB
  EXPECT_EQ(card.taken(), 36 * kMiB);
  EXPECT_NE(pool.allocate(2 * kMiB), nullptr);  // of the usual 32 MiB there is no hope
  EXPECT_EQ(card.taken(), 38 * kMiB);
  EXPECT_NE(pool.allocate(100), nullptr);
  EXPECT_EQ(pool.allocate(2 * kMiB), nullptr);
  EXPECT_NE(pool.allocate(100), nullptr);
}

TEST(CachingPool, ReleaseKeepsSegmentsWithALiveBlock) {
  FakeCard card(kGiB);
  CachingPool pool(card);
  void* small = pool.allocate(64 * kKiB);
  void* large = pool.allocate(100 * kMiB);
  pool.deallocate(large);
  pool.release();
  EXPECT_EQ(pool.reserved_bytes(), 2 * kMiB);
  pool.deallocate(small);
  pool.release();
  EXPECT_EQ(pool.reserved_bytes(), 0U);
}

// A step of training: activations and their working memory grow layer by layer, then shrink while
// gradients appear, which live until the next step begins.
TEST(CachingPool, ATrainingStepAfterTheFirstNeedsNoNewSegment) {
  for (const size_t unit : {100 * kKiB, 3 * kMiB + 7, 31 * kMiB}) {
    FakeCard card(64 * kGiB);
    CachingPool pool(card);
    std::vector<void*> gradients;
    int64_t after_first = 0;
    for (int step = 0; step < 6; ++step) {
      for (void* gradient : gradients) pool.deallocate(gradient);
      gradients.clear();
      std::vector<void*> saved;
      for (size_t layer = 0; layer < 12; ++layer) {
        void* scratch = pool.allocate(unit / 3);
        for (const size_t times : {1, 3, 1, 4, 4, 1}) saved.push_back(pool.allocate(times * unit));
        pool.deallocate(scratch);
      }
      void* logits = pool.allocate(20 * unit);
      void* dx = pool.allocate(unit);
      pool.deallocate(logits);
      while (!saved.empty()) {
        void* next = pool.allocate(unit);
        gradients.push_back(pool.allocate(unit / 5 + 1));
        pool.deallocate(saved.back());
        saved.pop_back();
        pool.deallocate(dx);
        dx = next;
      }
      pool.deallocate(dx);
      if (step == 0) after_first = pool.segments_taken();
    }
    EXPECT_EQ(pool.segments_taken(), after_first) << unit;
  }
}

}  // namespace
}  // namespace fovea
