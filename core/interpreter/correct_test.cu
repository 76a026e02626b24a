// SPDX-License-Identifier: Apache-2.0
// Correct kernels: in any order of lanes the interpreted device lets them pass, and their results
// are right.
#include <gtest/gtest.h>

#include <numeric>

#include "core/cuda/device.h"
#include "core/cuda/kernel.cuh"

namespace FOVEA_GPU {
namespace {

constexpr int kSeeds = 20;

// What the kernel writes to its first argument, floats that start as zeros, under each seed.
template <auto kKernel>
void expect(const std::vector<float>& expected, Dim3 grid, Dim3 block, size_t shared_bytes = 0) {
  std::vector<float> numbers(1024);
  std::iota(numbers.begin(), numbers.end(), 0.0f);
  void* in = device_allocate(4096);
  void* out = device_allocate(4096);
  copy_to_device(in, numbers.data(), 4096, {});
  for (int n = 0; n < kSeeds; ++n) {
    const std::optional<uint64_t> before = set_seed(n);
    fill_bytes(out, 0, 4096, {});
    launch<kKernel>(grid, block, shared_bytes, Stream{}, static_cast<float*>(out),
                    static_cast<const float*>(in));
    set_seed(before);
    std::vector<float> got(expected.size());
    copy_to_host(got.data(), out, got.size() * 4, {});
    EXPECT_EQ(got, expected) << "seed " << n;
  }
  device_free(out);
  device_free(in);
}

std::vector<float> table(int n, float (*f)(int)) {
  std::vector<float> values(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) values[static_cast<size_t>(i)] = f(i);
  return values;
}

// The room of a sum is used again after a barrier.
__global__ void sums_in_one_room(Global<float> out, Global<const float> in) {
  FOVEA_SHARED(float, room, 32);
  const int t = static_cast<int>(threadIdx.x);
  float total = 0.0f;
  for (int i = 0; i < 3; ++i) {
    total += block_sum(in[t + i], room);
    sync_block();
  }
  out[t] = total + block_max(in[t], room);
}
TEST(Correct, SharedMemoryUsedAgainAfterABarrier) {
  // 0 + ... + 127, and 128 more for each step
  expect<sums_in_one_room>(std::vector<float>(128, 3 * 8128 + 3 * 128 + 127), 1, 128);
}

// Lanes exchange through shared memory, the whole warp and then its halves.
__global__ void exchange(Global<float> out, Global<const float> in) {
  FOVEA_SHARED(float, s, 96);
  const int t = static_cast<int>(threadIdx.x);
  s[t] = in[t];
  sync_warp();
  const float other = s[t ^ 31];
  sync_warp();
  const unsigned half = t % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  s[t] = other;
  sync_warp(half);
  const float neighbour = s[t ^ 15];
  sync_warp(half);
  s[t] = neighbour;
  sync_warp();
  out[t] = s[t ^ 16];
}
TEST(Correct, LanesExchangeAfterTheirWarpMet) {
  expect<exchange>(table(96, [](int t) { return static_cast<float>(t); }), 1, 96);
}

// Warp 0 fills two stages, warps 1 and 2 empty them: "full" is barrier 1 + stage, "empty" 3 +
// stage.
__global__ void producer_and_consumers(Global<float> out, Global<const float> in) {
  FOVEA_SHARED(float, stages, 64);
  const int t = static_cast<int>(threadIdx.x), lane = t % 32;
  float sum = 0.0f;
  for (int step = 0; step < 6; ++step) {
    const int stage = step % 2;
    if (t < 32) {
      if (step >= 2) sync_named(3 + stage, 96);
      stages[stage * 32 + lane] = in[step * 32 + lane];
      arrive_named(1 + stage, 96);
    } else {
      sync_named(1 + stage, 96);
      sum += stages[stage * 32 + (t < 64 ? lane : 31 - lane)];
      if (step + 2 < 6) arrive_named(3 + stage, 96);
    }
  }
  if (t >= 32) out[t - 32] = sum;
}
TEST(Correct, ProducerAndConsumersThroughNamedBarriers) {
  expect<producer_and_consumers>(table(64,
                                       [](int t) {
                                         const int lane = t < 32 ? t : 63 - t;
                                         return static_cast<float>(6 * lane + 32 * 15);
                                       }),
                                 1, 96);
}

// Copies run one stage ahead of their use.
__global__ void pipeline(Global<float> out, Global<const float> in) {
  Shared<float> stages = dynamic_shared<float>();
  const int t = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int step) {
    if (step < 4) copy_async(stages + (step % 2 * 256 + t * 4), in + (step * 256 + t * 4));
    commit_copies();
  };
  fetch(0);
  float sum = 0.0f;
  for (int step = 0; step < 4; ++step) {
    fetch(step + 1);
    wait_copies<1>();
    sync_block();
    sum += stages[step % 2 * 256 + 255 - t];
    sync_block();
  }
  out[t] = sum;
}
TEST(Correct, CopiesOneStageAhead) {
  expect<pipeline>(table(64, [](int t) { return static_cast<float>(4 * (255 - t) + 6 * 256); }), 1,
                   64, 2048);
}

// bf16 values: threads share the words of 4 bytes, not the bytes.
__global__ void halves_of_words(Global<float> out, Global<const float> in) {
  FOVEA_SHARED(bf16, s, 64);
  const int t = static_cast<int>(threadIdx.x);
  s[t] = bf16(in[t]);
  sync_block();
  const Vec<bf16, 2> pair = load<2>(s + t / 2 * 2);
  sync_block();
  if (t % 2 == 0) store(s + t, Vec<bf16, 2>{{pair[1], pair[0]}});
  sync_block();
  const bf16 swapped = s[t];
  out[t] = static_cast<float>(swapped);
}
TEST(Correct, ThreadsShareWordsButNotBytes) {
  expect<halves_of_words>(table(64, [](int t) { return static_cast<float>(t ^ 1); }), 1, 64);
}

// Each block waits for the one before it.
__global__ void one_block_after_another(Global<float> out, Global<const float> in) {
  if (threadIdx.x == 0) {
    const Global<int> turn(reinterpret_cast<int*>(out.address() + 64));
    while (load_acquire(turn) != static_cast<int>(blockIdx.x)) spin();
    const float before = out[0];
    out[0] = 2.0f * before + in[blockIdx.x];
    store_release(turn, static_cast<int>(blockIdx.x) + 1);
  }
  sync_block();
}
TEST(Correct, BlocksInTurn) {
  float value = 0.0f;
  for (int i = 0; i < 16; ++i) value = 2.0f * value + static_cast<float>(i);
  expect<one_block_after_another>({value}, 16, 64);
}

// The last block to come adds what all have left.
__global__ void last_block_adds(Global<float> out, Global<const float> in) {
  FOVEA_SHARED(int, ticket, 1);
  const Global<int> count(reinterpret_cast<int*>(out.address() + 64));
  if (threadIdx.x == 0) {
    out[1 + blockIdx.x] = in[blockIdx.x];
    fence_device();
    ticket[0] = atomic_add(count, 1);
  }
  sync_block();
  if (ticket[0] == static_cast<int>(gridDim.x) - 1 && threadIdx.x == 0) {
    fence_device();
    float sum = 0.0f;
    for (int i = 0; i < static_cast<int>(gridDim.x); ++i) sum += out[1 + i];
    out[0] = sum;
  }
}
TEST(Correct, TheLastBlockAdds) { expect<last_block_adds>({120.0f}, 16, 32); }

// A counter and a maximum in shared memory.
__global__ void shared_atomics(Global<float> out, Global<const float> in) {
  FOVEA_SHARED(int, counter, 2);
  if (threadIdx.x < 2) counter[threadIdx.x] = 0;
  sync_block();
  const float mine = in[threadIdx.x];
  atomic_add(counter + 0, static_cast<int>(mine));
  atomic_max(counter + 1, static_cast<int>(mine));
  sync_block();
  const int sum = counter[0], most = counter[1];
  out[threadIdx.x] = static_cast<float>(1000 * most + sum);
}
TEST(Correct, AtomicsMeetAtomics) {
  expect<shared_atomics>(std::vector<float>(100, 99000 + 4950), 1, 100);
}

}  // namespace
}  // namespace FOVEA_GPU
