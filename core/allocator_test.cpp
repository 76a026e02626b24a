// SPDX-License-Identifier: Apache-2.0
#include "core/allocator.h"

#include <gtest/gtest.h>

#include "core/testing/devices.h"

namespace fovea {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

class Memory : public OnDevices {
 protected:
  void SetUp() override { release_cached(device()); }
  void TearDown() override { set_memory_limit(device(), 0); }
  static Tensor bytes(int64_t n) { return Tensor::empty({n}, Dtype::u8, device()); }
  // What allocating n bytes is refused with.
  static std::string refusal(int64_t n) {
    try {
      bytes(n);
    } catch (const OutOfMemory& error) {
      return error.what();
    }
    return "";
  }
  static int64_t live_of(const std::string& name) {
    for (const MemoryUse& use : memory_use(device()))
      if (use.name == name) return use.bytes;
    return 0;
  }
};
FOVEA_ON_DEVICES(Memory);

TEST_P(Memory, CountsWhatIsLiveAndWhatIsHeld) {
  const MemoryStats before = memory_stats(device());
  reset_peak(device());
  {
    const Tensor a = bytes(3 * kMiB), b = bytes(1000);
    const MemoryStats during = memory_stats(device());
    EXPECT_EQ(during.live_bytes, before.live_bytes + 3 * kMiB + 1000);
    EXPECT_EQ(during.allocations, before.allocations + 2);
    EXPECT_GE(during.reserved_bytes, during.live_bytes);
    EXPECT_GE(during.system_allocations, before.system_allocations + 1);
  }
  const MemoryStats after = memory_stats(device());
  EXPECT_EQ(after.live_bytes, before.live_bytes);
  EXPECT_EQ(after.peak_bytes, before.live_bytes + 3 * kMiB + 1000);
  EXPECT_LE(after.cached_bytes, after.reserved_bytes);
  EXPECT_LE(after.largest_free_bytes, after.cached_bytes);
  EXPECT_GE(after.fragmentation(), 0.0);
  EXPECT_LT(after.fragmentation(), 1.0);
  release_cached(device());
  EXPECT_EQ(memory_stats(device()).reserved_bytes, before.reserved_bytes);
}

TEST_P(Memory, WhatIsFreedIsUsedAgain) {
  bytes(5 * kMiB);
  const MemoryStats before = memory_stats(device());
  for (int i = 0; i < 3; ++i) bytes(5 * kMiB);
  const int64_t asked = memory_stats(device()).system_allocations - before.system_allocations;
  EXPECT_EQ(asked, device().kind == Device::Kind::interpreted ? 3 : 0);
}

TEST_P(Memory, TheInnermostLabelCounts) {
  Tensor a, b, c;
  {
    const MemoryLabel outer("test outer");
    a = bytes(100);
    {
      const MemoryLabel inner("test inner");
      b = bytes(20);
    }
    c = bytes(3);
  }
  EXPECT_EQ(live_of("test outer"), 103);
  EXPECT_EQ(live_of("test inner"), 20);
  a = Tensor();
  EXPECT_EQ(live_of("test outer"), 3);
  c.set_memory_group(MemoryGroup("test inner"));
  EXPECT_EQ(live_of("test inner"), 23);
  EXPECT_EQ(live_of("test outer"), 0);
}

TEST_P(Memory, GroupsThatDifferInNumbersAreCountedTogether) {
  std::vector<Tensor> live;
  for (const char* name : {"test of blocks.0.mlp", "test of blocks.10.mlp", "test2 of mlp3"}) {
    const MemoryLabel label(name);
    live.push_back(bytes(50));
  }
  EXPECT_EQ(live_of("test of blocks.*.mlp"), 100);
  EXPECT_EQ(live_of("test2 of mlp3"), 50);
}

TEST_P(Memory, PastTheLimitOneLineSaysWhatIsLive) {
  set_memory_limit(device(), memory_stats(device()).reserved_bytes + 104 * kMiB);
  Tensor large, first, second;
  {
    const MemoryLabel label("test large");
    large = bytes(40 * kMiB);
  }
  {
    const MemoryLabel label("test layers.0.mlp");
    first = bytes(4 * kMiB);
  }
  {
    const MemoryLabel label("test layers.1.mlp");
    second = bytes(6 * kMiB);
  }
  const std::string line = refusal(64 * kMiB);
  for (const std::string& part : {concat("out of memory on ", device(), ": wanted 64 MiB, free "),
                                  std::string("; largest live: "), std::string("test large 40 MiB"),
                                  std::string("test layers.*.mlp 10 MiB (2 together)")})
    EXPECT_NE(line.find(part), std::string::npos) << "expected \"" << part << "\" in: " << line;
  EXPECT_EQ(line.find('\n'), std::string::npos);
  // What is freed makes room: the cache is given back for a block of another size.
  large = Tensor();
  EXPECT_EQ(refusal(64 * kMiB), "");
  set_memory_limit(device(), 0);
  EXPECT_EQ(refusal(112 * kMiB), "");
}

TEST_P(Memory, MoreThanThereIsIsRefused) {
  const MemoryStats before = memory_stats(device());
  EXPECT_NE(refusal(int64_t{1} << 50).find("wanted 1048576.00 GiB"), std::string::npos);
  EXPECT_EQ(memory_stats(device()).live_bytes, before.live_bytes);
  EXPECT_EQ(memory_stats(device()).reserved_bytes, before.reserved_bytes);
}

TEST(MemoryLimit, IsNotNegative) { EXPECT_THROW(set_memory_limit(kCpu, -1), Error); }

}  // namespace
}  // namespace fovea
