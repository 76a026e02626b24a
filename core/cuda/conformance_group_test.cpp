// SPDX-License-Identifier: Apache-2.0
// Tiles of a warp, and the barrier of a grid.
#include "core/cuda/conformance_group_test.h"

#include <numeric>

#include "core/cuda/conformance_fixture.h"
#include "core/parallel.h"

namespace fovea {
namespace {

class GroupConformance : public Conformance {};

TEST_P(GroupConformance, TilesOfEverySizeAndSomeOfThem) {
  const std::vector<int> numbers = draw(64, 3, 5);
  const Values<int> in(numbers);
  for (const int size : {2, 4, 8, 16, 32}) {
    for (const unsigned tiles : {0xffffffffu, 0x55555555u, 0x1u, 0xfffffff2u}) {
      Values<TileValues> out(64);
      FOVEA_GPU_CALL(device(), conform_tile, out, in, size, tiles, stream());
      out.get();
      for (int t = 0; t < 64; ++t) {
        const TileValues got = out[static_cast<size_t>(t)];
        if (((tiles >> (t / size)) & 1u) == 0) {
          ASSERT_EQ(got.sum, 0);
          continue;
        }
        const int first = t / size * size, rank = t % size;
        const auto at = [&](int r) { return numbers[static_cast<size_t>(first + r)]; };
        const auto begin = numbers.begin() + first, end = begin + size;
        const int sum = std::accumulate(begin, end, 0);
        unsigned ballot = 0;
        for (int r = 0; r < size; ++r) ballot |= at(r) > 0 ? 1u << r : 0u;
        ASSERT_EQ(got.rank, rank);
        ASSERT_EQ(got.index, t / size);
        ASSERT_EQ(got.shuffled, at((rank + 1) % size));
        ASSERT_EQ(got.swapped, at(rank ^ (size / 2)));
        ASSERT_EQ(got.sum, sum);
        ASSERT_EQ(got.sum_f32, static_cast<float>(sum));
        ASSERT_EQ(got.most, *std::max_element(begin, end));
        ASSERT_EQ(got.ballot, ballot);
        ASSERT_EQ(got.any, ballot != 0 ? 1 : 0);
        ASSERT_EQ(got.all, std::all_of(begin, end, [](int n) { return n > 0; }) ? 1 : 0);
      }
    }
  }
}

TEST_P(GroupConformance, AGridMeetsAsOftenAsItLikes) {
  const int64_t most = FOVEA_GPU_CALL(device(), conform_blocks_together);
  ASSERT_GE(most, 1);
  Values<int> counter(1);  // one for all launches
  for (const int64_t blocks : {int64_t{1}, std::min<int64_t>(2, most), most}) {
    const auto n = static_cast<size_t>(blocks);
    std::vector<int> expected = draw(n, 5, 7);
    std::vector<int> start = expected;
    start.resize(2 * n);
    Values<int> values(start);
    constexpr int kRounds = 9;
    FOVEA_GPU_CALL(device(), conform_grid_sync, values, counter, static_cast<int>(blocks), kRounds,
                   stream());
    for (int round = 0; round < kRounds; ++round) {
      const std::vector<int> before = expected;
      for (size_t i = 0; i < n; ++i) expected[i] = before[(i + n - 1) % n] + before[(i + 1) % n];
    }
    const std::vector<int>& got = values.get();
    for (size_t i = 0; i < n; ++i) EXPECT_EQ(got[n + i], expected[i]) << blocks << " blocks";
  }
}

TEST_P(GroupConformance, AGridThatDoesNotFitIsRefused) {
  const auto blocks = static_cast<int>(FOVEA_GPU_CALL(device(), conform_blocks_together) + 1);
  Values<int> values(2 * static_cast<size_t>(blocks)), counter(1);
  try {
    FOVEA_GPU_CALL(device(), conform_grid_sync, values, counter, blocks, 1, stream());
    FAIL() << "a grid of " << blocks << " was launched";
  } catch (const Error& error) {
    const std::string line = error.what();
    for (const std::string& part :
         {std::string("grid_sync_kernel"), concat("a grid of (", blocks, ", 1, 1) whose blocks "),
          concat("wait for one another; ", blocks - 1, " run at once")})
      EXPECT_NE(line.find(part), std::string::npos) << line;
  }
}

FOVEA_ON_GPUS(GroupConformance);

}  // namespace
}  // namespace fovea
