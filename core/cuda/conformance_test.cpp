// SPDX-License-Identifier: Apache-2.0
// Indices, meetings, warp operations and atomics.
#include <limits>
#include <set>

#include "core/cuda/conformance_fixture.h"

namespace fovea {
namespace {

constexpr unsigned kMasks[] = {0xffffffffu, 0x0000ffffu, 0xffff0000u, 0x80000001u, 0x5a5a0ff0u};

class ThreadConformance : public Conformance {};

// ---- indices and meetings -----------------------------------------------------------------------

TEST_P(ThreadConformance, IndicesOfGridsAndBlocks) {
  for (const LaunchShape& s :
       {LaunchShape{{1, 1, 1}, {1, 1, 1}}, LaunchShape{{3, 2, 2}, {5, 3, 2}},
        LaunchShape{{2, 1, 3}, {40, 1, 2}}, LaunchShape{{7, 1, 1}, {33, 1, 1}}}) {
    const unsigned blocks = s.grid[0] * s.grid[1] * s.grid[2],
                   threads = s.block[0] * s.block[1] * s.block[2];
    Values<int> out(size_t{blocks} * threads * 12);
    FOVEA_GPU_CALL(device(), conform_indices, out, s, stream());
    const std::vector<int>& got = out.get();
    size_t at = 0;
    for (unsigned b = 0; b < blocks; ++b) {
      for (unsigned t = 0; t < threads; ++t) {
        const unsigned expected[12] = {b % s.grid[0],
                                       b / s.grid[0] % s.grid[1],
                                       b / s.grid[0] / s.grid[1],
                                       t % s.block[0],
                                       t / s.block[0] % s.block[1],
                                       t / s.block[0] / s.block[1],
                                       s.block[0],
                                       s.block[1],
                                       s.block[2],
                                       s.grid[0],
                                       s.grid[1],
                                       s.grid[2]};
        for (const unsigned number : expected) ASSERT_EQ(got[at++], static_cast<int>(number));
      }
    }
  }
}

TEST_P(ThreadConformance, Barriers) {
  const Values<int> in(draw(1024, 1000, 1));
  for (const int threads : {1, 31, 32, 33, 100, 1024}) {
    Values<int> out(1024, -1);
    FOVEA_GPU_CALL(device(), conform_block_barrier, out, in, threads, stream());
    out.get();
    for (int t = 0; t < threads; ++t)
      ASSERT_EQ(out[static_cast<size_t>(t)], in[static_cast<size_t>(threads - 1 - t)]);
  }
  Values<int> out(64);
  FOVEA_GPU_CALL(device(), conform_named_barrier, out, in, stream());
  out.get();
  for (size_t t = 0; t < 64; ++t) {
    int sum = 0;
    for (size_t step = 0; step < 4; ++step) sum = 2 * sum + in[64 * step + 63 - t];
    EXPECT_EQ(out[t], sum);
  }
  FOVEA_GPU_CALL(device(), conform_warp_barrier, out, in, stream());
  out.get();
  for (size_t t = 0; t < 64; ++t) EXPECT_EQ(out[t], in[t ^ 31]);
}

// ---- warp operations ----------------------------------------------------------------------------

template <typename T>
std::vector<T> of_lanes(T scale) {
  std::vector<T> values(32);
  for (size_t i = 0; i < 32; ++i) values[i] = T(i + 1) * scale;
  return values;
}

TEST_P(ThreadConformance, Shuffles) {
  const auto check = [&](auto scale) {
    using T = decltype(scale);
    const Values<T> in(of_lanes<T>(scale));
    for (const unsigned mask : kMasks) {
      const auto has = [mask](int lane) { return ((mask >> lane) & 1u) != 0; };
      // Sources that take part.
      std::vector<int> members;
      for (int lane = 0; lane < 32; ++lane)
        if (has(lane)) members.push_back(lane);
      for (const Exchange how : {Exchange::index, Exchange::xor_, Exchange::up, Exchange::down}) {
        for (const int n : {0, 1, 7, 31}) {
          std::vector<int> operand(32, 0), source(32, 0);
          for (int lane = 0; lane < 32; ++lane) {
            const auto i = static_cast<size_t>(lane);
            switch (how) {
              case Exchange::index:
                source[i] = members[static_cast<size_t>(lane * 5 + n) % members.size()];
                operand[i] = source[i] + (lane % 2 == 0 ? 32 : 0);  // taken modulo 32
                break;
              case Exchange::xor_:
                operand[i] = n;
                source[i] = lane ^ n;
                break;
              case Exchange::up:
                operand[i] = n;
                source[i] = lane - n >= 0 ? lane - n : lane;
                break;
              case Exchange::down:
                operand[i] = n;
                source[i] = lane + n <= 31 ? lane + n : lane;
                break;
            }
          }
          // Reading from a lane outside the mask is undefined.
          if (std::any_of(members.begin(), members.end(),
                          [&](int lane) { return !has(source[static_cast<size_t>(lane)]); }))
            continue;
          const Values<int> operands(operand);
          Values<T> out(32);
          FOVEA_GPU_CALL(device(), conform_shuffle<T>, out, in, operands, how, mask, stream());
          out.get();
          for (int lane = 0; lane < 32; ++lane) {
            const auto i = static_cast<size_t>(lane);
            EXPECT_EQ(out[i], has(lane) ? in[static_cast<size_t>(source[i])] : T(-1))
                << "how " << static_cast<int>(how) << ", n " << n << ", mask " << mask << ", lane "
                << lane;
          }
        }
      }
    }
  };
  check(int32_t{-3});
  check(0.7f);
  check(int64_t{1} << 33);
}

TEST_P(ThreadConformance, Votes) {
  for (const unsigned predicates : {0u, 0xffffffffu, 0x00ff00f0u, 0x80000000u, 0x5a5a0ff0u}) {
    std::vector<int> bits(32);
    for (size_t i = 0; i < 32; ++i) bits[i] = static_cast<int>((predicates >> i) & 1u);
    const Values<int> in(bits);
    for (const unsigned mask : kMasks) {
      const unsigned expected[3] = {predicates & mask, (predicates & mask) != 0 ? 1u : 0u,
                                    (~predicates & mask) == 0 ? 1u : 0u};
      for (const Vote how : {Vote::ballot, Vote::any, Vote::all}) {
        Values<unsigned> out(32);
        FOVEA_GPU_CALL(device(), conform_vote, out, in, how, mask, stream());
        out.get();
        for (size_t i = 0; i < 32; ++i)
          EXPECT_EQ(out[i], ((mask >> i) & 1u) != 0 ? expected[static_cast<int>(how)] : 0xdeadu);
      }
    }
  }
}

TEST_P(ThreadConformance, Reductions) {
  const auto check = [&]<typename T>(std::vector<T> values) {
    const Values<T> in(std::move(values));
    for (const unsigned mask : kMasks) {
      T sum = 0, most = std::numeric_limits<T>::min(), least = std::numeric_limits<T>::max();
      for (size_t i = 0; i < 32; ++i) {
        if (((mask >> i) & 1u) == 0) continue;
        sum = static_cast<T>(static_cast<uint32_t>(sum) + static_cast<uint32_t>(in[i]));
        most = std::max(most, in[i]);
        least = std::min(least, in[i]);
      }
      const T expected[3] = {sum, most, least};
      for (const Reduction how : {Reduction::add, Reduction::max, Reduction::min}) {
        Values<T> out(32);
        FOVEA_GPU_CALL(device(), conform_reduce<T>, out, in, how, mask, stream());
        out.get();
        for (size_t i = 0; i < 32; ++i)
          EXPECT_EQ(out[i], ((mask >> i) & 1u) != 0 ? expected[static_cast<int>(how)] : T{0});
      }
    }
  };
  std::vector<int32_t> with_signs = draw(32, 1 << 30, 2);
  check(with_signs);
  check(std::vector<uint32_t>(with_signs.begin(), with_signs.end()));
}

// ---- atomics ------------------------------------------------------------------------------------

TEST_P(ThreadConformance, Atomics) {
  for (const int blocks : {1, 5}) {
    const int threads = 96, n = blocks * threads;
    const Values<int> in(draw(static_cast<size_t>(n), 1000, 3));
    std::vector<int> start(8 + static_cast<size_t>(n), 0);
    start[1] = start[3] = -1000000;
    start[6] = -1;
    Values<int> out(start);
    FOVEA_GPU_CALL(device(), conform_atomics, out, in, blocks, threads, stream());
    const std::vector<int>& got = out.get();
    int sum = 0, most = -1000000;
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      sum += in[i];
      most = std::max(most, in[i]);
    }
    const int indices = n * (n - 1) / 2;
    EXPECT_EQ(got[0], sum);
    EXPECT_EQ(got[1], most);
    EXPECT_EQ(got[2], sum);
    EXPECT_EQ(got[3], most);
    EXPECT_EQ(got[4], indices - blocks);  // each block's exchanges began with -1
    EXPECT_EQ(got[5], n);
    EXPECT_EQ(got[7] + got[6], indices - 1);
    EXPECT_EQ(std::set<int>(got.begin() + 8, got.end()).size(), static_cast<size_t>(n));
  }
}

TEST_P(ThreadConformance, AddsOfVectors) {
  for (const size_t width : {2u, 4u}) {
    const std::vector<int> numbers = draw(96 * width, 1000, 12);
    const Values<float> in(std::vector<float>(numbers.begin(), numbers.end()));
    std::vector<float> expected(width, 1.0f);
    for (size_t i = 0; i < numbers.size(); ++i)
      expected[i % width] += static_cast<float>(5 * numbers[i]);
    Values<float> out(width, 1.0f);
    FOVEA_GPU_CALL(device(), conform_add_vectors, out, in, 5, 96, static_cast<int>(width),
                   stream());
    EXPECT_EQ(out.get(), expected);
  }
}

TEST_P(ThreadConformance, AcquireAndReleaseOrderBlocks) {
  Values<int> out(2);
  FOVEA_GPU_CALL(device(), conform_turns, out, 12, stream());
  out.get();
  int expected = 0;
  for (int block = 0; block < 12; ++block) expected = 3 * expected + block;
  EXPECT_EQ(out[0], expected);
  EXPECT_EQ(out[1], 12);
}

FOVEA_ON_GPUS(ThreadConformance);

}  // namespace
}  // namespace fovea
