// SPDX-License-Identifier: Apache-2.0
// Wrong kernels, and what the interpreted device says of each: kernel, block, thread, line, reason.
// docs/kernels.md shows some of them. The line that it must name ends in "// stops: <kernel>".
#include "core/interpreter/faults_test.h"

namespace FOVEA_GPU {
namespace {

// ---- memory -------------------------------------------------------------------------------------

__global__ void shared_overrun() {
  FOVEA_SHARED(float, sums, 32);
  sums[threadIdx.x + 1] = 1.0f;  // stops: shared_overrun
}
__global__ void shared_overread(Global<float> out) {
  FOVEA_SHARED(float, sums, 32);
  sums[threadIdx.x] = 1.0f;
  sync_block();
  out[threadIdx.x] = sums[static_cast<int>(threadIdx.x) - 2];  // stops: shared_overread
}
__global__ void dynamic_overrun() {
  Shared<float> tile = dynamic_shared<float>(64);
  tile[threadIdx.x] = 1.0f;  // stops: dynamic_overrun
}
__global__ void dynamic_overread() {
  Shared<float> tile = dynamic_shared<float>();
  store(tile + threadIdx.x * 4, Vec<float, 4>{});
  sync_block();
  load<4>(tile + (threadIdx.x + 1) * 4);  // stops: dynamic_overread
}
TEST(Faults, SharedMemoryIsLeft) {
  const Floats out(32);
  EXPECT_EQ(stop<shared_overrun>(1, 32, 0),
            says("shared_overrun", 0, 31,
                 "writes outside shared memory \"sums\", byte 128 to 132 of 128"));
  EXPECT_EQ(
      stop<shared_overread>(1, 32, 0, out),
      says("shared_overread", 0, 0, "reads outside shared memory \"sums\", byte -8 to -4 of 128"));
  EXPECT_EQ(stop<dynamic_overrun>(1, 32, 128),
            says("dynamic_overrun", 0, 16,
                 "writes outside shared memory \"dynamic\", byte 128 to 132 of 128"));
  EXPECT_EQ(stop<dynamic_overread>(1, 32, 512),
            says("dynamic_overread", 0, 31,
                 "reads outside shared memory \"dynamic\", byte 512 to 528 of 512"));
}

__global__ void device_overrun(Global<float> out) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  out[i] = 1.0f;  // stops: device_overrun
}
__global__ void device_overread(Global<float> out, Global<const float> in) {
  out[threadIdx.x] = in[threadIdx.x + 1];  // stops: device_overread
}
TEST(Faults, DeviceMemoryIsLeft) {
  const Floats out(40), in(32);
  EXPECT_EQ(stop<device_overrun>(2, 32, 0, out),
            says("device_overrun", 1, 8, "writes outside device memory, byte 160 to 164 of 160"));
  EXPECT_EQ(stop<device_overread>(1, 32, 0, out, in),
            says("device_overread", 0, 31, "reads outside device memory, byte 128 to 132 of 128"));
}

__global__ void reads_pointer(Global<const float> in) {
  [[maybe_unused]] const float x = in[threadIdx.x];  // stops: reads_pointer
}
TEST(Faults, PointersToNoDeviceMemory) {
  const float on_host[32] = {};
  const std::string not_device = "reads through a pointer that is not to device memory";
  EXPECT_EQ(stop<reads_pointer>(1, 32, 0, on_host), says("reads_pointer", 0, 0, not_device));
  const float* freed = Floats(32);
  EXPECT_EQ(stop<reads_pointer>(1, 32, 0, freed), says("reads_pointer", 0, 0, not_device));
  EXPECT_EQ(stop<reads_pointer>(1, 32, 0, nullptr),
            says("reads_pointer", 0, 0, "reads through a null pointer"));
}

__global__ void misaligned_load(Global<const float> in) {
  load<4>(in + 1);  // stops: misaligned_load
}
__global__ void misaligned_store() {
  store(dynamic_shared<float>() + 2, Vec<float, 4>{});  // stops: misaligned_store
}
TEST(Faults, MisalignedVectors) {
  const Floats in(64);
  EXPECT_EQ(stop<misaligned_load>(1, 32, 0, in),
            says("misaligned_load", 0, 0,
                 "reads 16 bytes that are not aligned: device memory, byte 4 to 20 of 256"));
  EXPECT_EQ(stop<misaligned_store>(1, 32, 64),
            says("misaligned_store", 0, 0,
                 "writes of 16 bytes that are not aligned: shared memory \"dynamic\", byte 8 to 24 "
                 "of 64"));
}

__global__ void unwritten_shared(Global<float> out) {
  FOVEA_SHARED(float, sums, 64);
  if (threadIdx.x < 33) sums[threadIdx.x] = 1.0f;
  sync_block();
  out[threadIdx.x] = sums[threadIdx.x];  // stops: unwritten_shared
}
TEST(Faults, NeverWritten) {
  const Floats out(64), fresh(64, true);
  EXPECT_EQ(stop<unwritten_shared>(1, 64, 0, out),
            says("unwritten_shared", 0, 63,
                 "reads what was never written: shared memory \"sums\", byte 252 to 256 of 256"));
  EXPECT_EQ(stop<reads_pointer>(1, 32, 0, fresh),
            says("reads_pointer", 0, 0,
                 "reads what was never written: device memory, byte 0 to 4 of 256"));
}

// ---- order --------------------------------------------------------------------------------------

__global__ void no_barrier(Global<float> out) {
  FOVEA_SHARED(float, s, 64);
  s[threadIdx.x] = 1.0f;
  out[threadIdx.x] = s[threadIdx.x / 2];  // stops: no_barrier
}
__global__ void no_second_barrier() {
  FOVEA_SHARED(float, s, 64);
  s[threadIdx.x] = 1.0f;
  sync_block();
  const float first = s[0];
  if (threadIdx.x == 0) s[0] = first + 1.0f;  // stops: no_second_barrier
}
__global__ void two_writers() {
  FOVEA_SHARED(float, s, 1);
  s[0] = 1.0f;  // stops: two_writers
}
__global__ void only_the_warp() {
  FOVEA_SHARED(float, s, 64);
  s[threadIdx.x] = 1.0f;
  sync_warp();
  if (threadIdx.x >= 32) {
    [[maybe_unused]] const float x = s[threadIdx.x - 32];  // stops: only_the_warp
  }
}
__global__ void only_half_the_warp() {
  FOVEA_SHARED(float, s, 32);
  s[threadIdx.x] = 1.0f;
  sync_warp();
  s[threadIdx.x] = 2.0f;
  sync_warp(threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u);
  [[maybe_unused]] const float same = s[threadIdx.x ^ 1];
  [[maybe_unused]] const float x = s[threadIdx.x ^ 16];  // stops: only_half_the_warp
}
__global__ void reads_after_arrive() {
  FOVEA_SHARED(float, s, 1);
  if (threadIdx.x == 0) s[0] = 1.0f;
  sync_block();
  if (threadIdx.x < 32) {
    sync_named(1, 64);
    if (threadIdx.x == 0) s[0] = 2.0f;  // stops: reads_after_arrive
  } else {
    arrive_named(1, 64);
    [[maybe_unused]] const float late = s[0];
  }
}
TEST(Faults, Races) {
  const Floats out(64);
  EXPECT_EQ(stop<no_barrier>(1, 64, 0, out),
            says("no_barrier", 0, 1,
                 "reads what thread (0, 0, 0) writes with no barrier between: shared memory \"s\", "
                 "byte 0 to 4 of 256"));
  EXPECT_EQ(stop<no_second_barrier>(1, 64, 0),
            says("no_second_barrier", 0, 0,
                 "writes where thread (63, 0, 0) reads, with no barrier between: shared memory "
                 "\"s\", byte 0 to 4 of 256"));
  EXPECT_EQ(stop<two_writers>(1, 64, 0),
            says("two_writers", 0, 1,
                 "writes where thread (0, 0, 0) writes too, with no barrier between: shared memory "
                 "\"s\", byte 0 to 4 of 4"));
  EXPECT_EQ(
      stop<only_the_warp>(1, 64, 0),
      says("only_the_warp", 0, 63,
           "reads what thread (31, 0, 0) writes with no barrier between: shared memory \"s\", "
           "byte 124 to 128 of 256"));
  EXPECT_EQ(
      stop<only_half_the_warp>(1, 32, 0),
      says("only_half_the_warp", 0, 15,
           "reads what thread (31, 0, 0) writes with no barrier between: shared memory \"s\", "
           "byte 124 to 128 of 128"));
  EXPECT_EQ(stop<reads_after_arrive>(1, 64, 0),
            says("reads_after_arrive", 0, 0,
                 "writes where thread (62, 0, 0) reads, with no barrier between: shared memory "
                 "\"s\", byte 0 to 4 of 4"));
}

__global__ void async_no_wait(Global<const float> in) {
  FOVEA_SHARED(float, s, 128);
  store(s + threadIdx.x * 4, Vec<float, 4>{});
  copy_async(s + threadIdx.x * 4, in + threadIdx.x * 4);
  commit_copies();
  [[maybe_unused]] const float x = s[threadIdx.x * 4];  // stops: async_no_wait
}
__global__ void async_no_barrier(Global<const float> in) {
  FOVEA_SHARED(float, s, 128);
  copy_async(s + threadIdx.x * 4, in + threadIdx.x * 4);
  commit_copies();
  wait_copies<0>();
  if (threadIdx.x > 0) {
    [[maybe_unused]] const float x = s[threadIdx.x * 4 - 1];  // stops: async_no_barrier
  }
}
TEST(Faults, CopiesUnderWay) {
  const Floats in(128);
  EXPECT_EQ(stop<async_no_wait>(1, 32, 0, in),
            says("async_no_wait", 0, 0,
                 "reads what a copy_async of thread (0, 0, 0) brings, before its wait_copies: "
                 "shared memory \"s\", byte 0 to 4 of 512"));
  EXPECT_EQ(stop<async_no_barrier>(1, 32, 0, in),
            says("async_no_barrier", 0, 1,
                 "reads what thread (0, 0, 0) writes with no barrier between: shared memory \"s\", "
                 "byte 12 to 16 of 512"));
}

// The order of accesses to device memory is not watched: here a random order of lanes shows what
// the order as numbered hides.
__global__ void device_race(Global<float> value, Global<float> out) {
  value[threadIdx.x] = 1.0f;
  out[threadIdx.x] = value[threadIdx.x / 2];
}
TEST(Faults, ARandomOrderOfLanesShowsRacesOnDeviceMemory) {
  int wrong = 0;
  for (int n = -1; n < 8; ++n) {
    const Floats value(64), out(64);
    const Order order(n < 0 ? std::nullopt : std::optional<uint64_t>(n));
    launch<device_race>(1, 64, 0, Stream{}, value, out);
    std::vector<float> got(64);
    copy_to_host(got.data(), out, 256, {});
    const bool right = got == std::vector<float>(64, 1.0f);
    if (n < 0) {
      EXPECT_TRUE(right);
    }
    wrong += right ? 0 : 1;
  }
  EXPECT_GE(wrong, 7);
}

// ---- meetings -----------------------------------------------------------------------------------

__global__ void two_barriers() {
  if (threadIdx.x < 32)
    sync_block();  // the other barrier of two_barriers
  else
    sync_block();  // stops: two_barriers
}
__global__ void half_a_barrier() {
  if (threadIdx.x < 32) sync_block();  // stops: half_a_barrier
}
__global__ void early_return(int n) {
  if (static_cast<int>(threadIdx.x) >= n) return;
  sync_block();  // stops: early_return
}
__global__ void early_lane() {
  if (threadIdx.x == 5) return;
  sync_block();  // stops: early_lane
}
__global__ void wrong_count() {
  if (threadIdx.x < 32)
    sync_named(3, 64);  // the other count of wrong_count
  else
    sync_named(3, 96);  // stops: wrong_count
}
__global__ void alone_at_a_named_barrier() {
  sync_named(3, 64);  // stops: alone_at_a_named_barrier
}
TEST(Faults, Barriers) {
  EXPECT_EQ(stop<two_barriers>(1, 64, 0),
            says("two_barriers", 0, 63,
                 "the barrier of the block diverges: thread (31, 0, 0) waits for it at " +
                     place("the other barrier of two_barriers")));
  const std::string never = "waits at the barrier of the block for threads that never come: ";
  EXPECT_EQ(stop<half_a_barrier>(1, 64, 0),
            says("half_a_barrier", 0, 0, never + "32 of 64 threads have left the kernel"));
  EXPECT_EQ(stop<early_return>(1, 64, 0, 32),
            says("early_return", 0, 0, never + "32 of 64 threads have left the kernel"));
  EXPECT_EQ(stop<early_lane>(1, 64, 0),
            says("early_lane", 0, 6, "the barrier of the block: lane 5 has left the kernel"));
  EXPECT_EQ(stop<wrong_count>(1, 64, 0), says("wrong_count", 0, 63,
                                              "barrier 3 is for 96 threads here but for 64 at " +
                                                  place("the other count of wrong_count")));
  EXPECT_EQ(stop<alone_at_a_named_barrier>(1, 32, 0),
            says("alone_at_a_named_barrier", 0, 0,
                 "waits at sync_named for threads that never come: 0 of 32 threads have left the "
                 "kernel"));
}

__global__ void lane_missing() {
  if (threadIdx.x != 3) shuffle_xor(1.0f, 1);  // stops: lane_missing
}
__global__ void different_operations() {
  if (threadIdx.x < 16)
    ballot(true);  // the other operation of different_operations
  else
    sync_warp();  // stops: different_operations
}
__global__ void different_types() {
  if (threadIdx.x < 16)
    shuffle(1.0f, 0);  // the other operation of different_types
  else
    shuffle(1.0, 0);  // stops: different_types
}
__global__ void different_masks() {
  if (threadIdx.x < 16)
    sync_warp();  // the other operation of different_masks
  else
    sync_warp(0xffff8000u);  // stops: different_masks
}
__global__ void not_in_mask() {
  sync_warp(0x0000ffffu);  // stops: not_in_mask
}
__global__ void from_outside_the_mask() {
  if (threadIdx.x < 16) shuffle(1.0f, 16, 0x0000ffffu);  // stops: from_outside_the_mask
}
TEST(Faults, WarpOperations) {
  EXPECT_EQ(stop<lane_missing>(1, 32, 0),
            says("lane_missing", 0, 4, "shuffle: lane 3 has left the kernel"));
  EXPECT_EQ(stop<different_operations>(1, 32, 0),
            says("different_operations", 0, 16,
                 "sync_warp: lane 0 of the warp is at ballot at " +
                     place("the other operation of different_operations")));
  EXPECT_EQ(stop<different_types>(1, 32, 0),
            says("different_types", 0, 16,
                 "shuffle of 8 bytes: lane 0 of the warp is at shuffle at " +
                     place("the other operation of different_types")));
  EXPECT_EQ(stop<different_masks>(1, 32, 0),
            says("different_masks", 0, 16,
                 "sync_warp: lane 15 of the warp is at sync_warp at " +
                     place("the other operation of different_masks") + " with another mask"));
  EXPECT_EQ(stop<not_in_mask>(1, 32, 0),
            says("not_in_mask", 0, 16, "sync_warp: lane 16 is not in its own mask 0x0000ffff"));
  EXPECT_EQ(stop<from_outside_the_mask>(1, 32, 0),
            says("from_outside_the_mask", 0, 15, "shuffle from lane 16, which takes no part"));
}

// ---- launches and waits -------------------------------------------------------------------------

TEST(Faults, Launches) {
  EXPECT_EQ(stop<half_a_barrier>(1, Dim3(32, 32, 2), 0),
            "kernel half_a_barrier: 2048 threads a block; expected 1 to 1024");
  EXPECT_EQ(stop<half_a_barrier>(0, 32, 0),
            "kernel half_a_barrier: a grid of (0, 1, 1); expected 1 to (2147483647, 65535, 65535)");
  EXPECT_EQ(stop<half_a_barrier>(1, 32, 256 << 10),
            "kernel half_a_barrier: 262144 bytes of shared memory; a block has at most 232448");
}

__global__ void nobody_sets_the_flag(Global<int> flag) {
  while (load_acquire(flag) == 0) spin();  // stops: nobody_sets_the_flag
}
__global__ void no_spin_in_the_loop(Global<int> flag) {
  if (threadIdx.x == 7) {
    while (load_acquire(flag) == 0) {  // stops: no_spin_in_the_loop
    }
  }
  sync_warp();  // the other wait of no_spin_in_the_loop
}
__global__ void waits_for_a_later_block(Global<int> flag) {
  if (blockIdx.x < gridDim.x - 1) {
    while (load_acquire(flag) == 0) spin();  // stops: waits_for_a_later_block
  } else {
    store_release(flag, 1);
  }
}
TEST(Faults, EndlessWaits) {
  const Floats zero(1);
  const auto flag = reinterpret_cast<int*>(static_cast<float*>(zero));
  EXPECT_EQ(stop<nobody_sets_the_flag>(1, 32, 0, flag),
            says("nobody_sets_the_flag", 0, 0,
                 "waits at a loop that spins for what no thread will do: 0 of 32 threads have left "
                 "the kernel"));
  EXPECT_EQ(stop<no_spin_in_the_loop>(1, 32, 0, flag),
            says("no_spin_in_the_loop", 0, 7,
                 "waits at a loop that spins for what no thread will do: thread (0, 0, 0) waits at "
                 "sync_warp at " +
                     place("the other wait of no_spin_in_the_loop")));
  EXPECT_NE(stop<waits_for_a_later_block>(1000, 32, 0, flag)
                .find("waits at a loop that spins for what no thread will do"),
            std::string::npos);
}

}  // namespace
}  // namespace FOVEA_GPU
