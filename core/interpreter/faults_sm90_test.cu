// SPDX-License-Identifier: Apache-2.0
// Wrong kernels for Hopper, and what the interpreted device says of each (faults_test.cu is of
// those for all cards). docs/kernels.md shows some of them.
#include "core/cuda/kernel90.cuh"
#include "core/interpreter/faults_test.h"

namespace FOVEA_GPU {
namespace {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kTile = 8192;  // bytes: 64 rows of 128

// A barrier of one arrival, for all to use.
__device__ inline void make(Shared<Barrier> b, int count = 1) {
  if (threadIdx.x == 0) {
    barrier_init(b, count);
    fence_barrier_init();
  }
  sync_block();
}
// The operands of products, and zeros in them.
__device__ inline Descriptor left() { return k_major(dynamic_shared<bf16>()); }
__device__ inline Descriptor right() { return k_major(dynamic_shared<bf16>(kTile)); }
__device__ inline void clear_tiles() {
  const int t = static_cast<int>(threadIdx.x);
  for (int i = t; i < 2 * kTile / 16; i += static_cast<int>(blockDim.x))
    store(dynamic_shared<float>() + 4 * i, Vec<float, 4>{});
  fence_async();
  sync_block();
}

// ---- what threads wrote -------------------------------------------------------------------------

__global__ void unfenced_product() {
  clear_tiles();
  dynamic_shared<bf16>()[threadIdx.x] = bf16(1.0f);
  sync_block();
  float d[32];
  wgmma_fence();
  wgmma<64>(d, left(), right(), false);  // stops: unfenced_product
  wgmma_commit();
  wgmma_wait<0>();
}
__global__ void fence_after_the_meeting() {
  clear_tiles();
  dynamic_shared<bf16>()[threadIdx.x] = bf16(1.0f);
  sync_block();
  fence_async();
  float d[32];
  wgmma_fence();
  wgmma<64>(d, left(), right(), false);  // stops: fence_after_the_meeting
  wgmma_commit();
  wgmma_wait<0>();
}
__global__ void unfenced_store(Global<float> out) {
  FOVEA_SHARED(float, s, 32);
  s[threadIdx.x] = 1.0f;
  sync_warp();
  if (threadIdx.x == 0) {
    store_bulk(out, s + 0, 128);  // stops: unfenced_store
    commit_bulk();
    wait_bulk_read<0>();
  }
}
__global__ void unfenced_overwrite(Global<const float> in) {
  FOVEA_SHARED(float, s, 32);
  FOVEA_SHARED(Barrier, full, 1);
  s[threadIdx.x] = 1.0f;
  make(full);
  if (threadIdx.x == 0) {
    barrier_arrive_expect(full, 128);
    load_bulk(s + 0, in, 128, full);  // stops: unfenced_overwrite
  }
  barrier_wait(full, 0);
}
TEST(FaultsSm90, WritesThatAreNotFenced) {
  const Floats memory(32);
  const std::string unfenced =
      " wrote, with no fence_async() by it and a meeting in between: shared memory ";
  EXPECT_EQ(
      stop<unfenced_product>(1, kGroup, 2 * kTile),
      says("unfenced_product", 0, 0,
           "wgmma reads what thread (0, 0, 0)" + unfenced + "\"dynamic\", byte 0 to 16 of 16384"));
  // Thread 0's own writes are fenced, but not for all to know.
  EXPECT_EQ(
      stop<fence_after_the_meeting>(1, kGroup, 2 * kTile),
      says("fence_after_the_meeting", 0, 0,
           "wgmma reads what thread (1, 0, 0)" + unfenced + "\"dynamic\", byte 0 to 16 of 16384"));
  EXPECT_EQ(
      stop<unfenced_store>(1, 32, 0, memory),
      says("unfenced_store", 0, 0,
           "store_bulk reads what thread (0, 0, 0)" + unfenced + "\"s\", byte 0 to 128 of 128"));
  EXPECT_EQ(
      stop<unfenced_overwrite>(1, 32, 0, memory),
      says("unfenced_overwrite", 0, 0,
           "a copy writes over what thread (0, 0, 0)" + unfenced + "\"s\", byte 0 to 128 of 128"));
}

// ---- what is under way --------------------------------------------------------------------------

__global__ void reads_before_the_wait(Global<const float> in) {
  FOVEA_SHARED(float, s, 32);
  FOVEA_SHARED(Barrier, full, 1);
  make(full);
  if (threadIdx.x == 0) {
    barrier_arrive_expect(full, 128);
    load_bulk(s + 0, in, 128, full);
  }
  sync_block();
  [[maybe_unused]] const float x = s[threadIdx.x];  // stops: reads_before_the_wait
}
__global__ void only_one_lane_waits(Global<const float> in) {
  FOVEA_SHARED(float, s, 32);
  FOVEA_SHARED(Barrier, full, 1);
  make(full);
  if (threadIdx.x == 31) {
    barrier_arrive_expect(full, 128);
    load_bulk(s + 0, in, 128, full);
    barrier_wait(full, 0);
  }
  [[maybe_unused]] const float x = s[threadIdx.x];  // stops: only_one_lane_waits
}
__global__ void stage_given_back_early(Global<const float> in) {
  FOVEA_SHARED(float, s, 32);
  FOVEA_SHARED(Barrier, full, 1);
  FOVEA_SHARED(Barrier, empty, 1);
  make(full);
  make(empty);
  if (threadIdx.x == 32) {
    for (int step = 0; step < 2; ++step) {
      barrier_wait(empty, step == 0 ? 1u : 0u);
      barrier_arrive_expect(full, 128);
      load_bulk(s + 0, in, 128, full);  // stops: stage_given_back_early
    }
  } else if (threadIdx.x < 32) {
    barrier_wait(full, 0);
    [[maybe_unused]] const float x = s[threadIdx.x];
    if (threadIdx.x == 31) barrier_arrive(empty);  // a sync_warp() is missing before
    barrier_wait(full, 1);
  }
}
__global__ void writes_what_a_store_reads(Global<float> out) {
  FOVEA_SHARED(float, s, 32);
  s[threadIdx.x] = 1.0f;
  fence_async();
  sync_warp();
  if (threadIdx.x == 0) {
    store_bulk(out, s + 0, 128);  // the store of writes_what_a_store_reads
    commit_bulk();
    s[5] = 2.0f;  // stops: writes_what_a_store_reads
    wait_bulk_read<0>();
  }
}
__global__ void writes_what_a_product_reads() {
  clear_tiles();
  float d[32];
  wgmma_fence();
  wgmma<64>(d, left(), right(), false);  // the product of writes_what_a_product_reads
  wgmma_commit();
  dynamic_shared<bf16>(kTile)[threadIdx.x] = bf16(1.0f);  // stops: writes_what_a_product_reads
  wgmma_wait<0>();
}
__global__ void changes_accumulators() {
  clear_tiles();
  float d[32] = {};
  wgmma_fence();
  wgmma<64>(d, left(), right(), true);  // the product of changes_accumulators
  wgmma_commit();
  d[3] = 2.0f;
  wgmma_wait<0>();  // stops: changes_accumulators
}
TEST(FaultsSm90, WhatIsUnderWay) {
  const Floats memory(32);
  EXPECT_EQ(stop<reads_before_the_wait>(1, 32, 0, memory),
            says("reads_before_the_wait", 0, 30,
                 "reads what a copy of thread (0, 0, 0) brings, before the barrier_wait for it: "
                 "shared memory \"s\", byte 120 to 124 of 128"));
  EXPECT_EQ(
      stop<only_one_lane_waits>(1, 32, 0, memory),
      says("only_one_lane_waits", 0, 0,
           "reads what thread (31, 0, 0) writes with no barrier between: shared memory \"s\", "
           "byte 0 to 4 of 128"));
  EXPECT_EQ(stop<stage_given_back_early>(1, 64, 0, memory),
            says("stage_given_back_early", 0, 32,
                 "writes where thread (0, 0, 0) reads, with no barrier between: shared memory "
                 "\"s\", byte 0 to 128 of 128"));
  EXPECT_EQ(stop<writes_what_a_store_reads>(1, 32, 0, memory),
            says("writes_what_a_store_reads", 0, 0,
                 "writes what a store of thread (0, 0, 0) at " +
                     place("the store of writes_what_a_store_reads") +
                     " reads until its wait_bulk_read: shared memory \"s\", byte 20 to 24 of 128"));
  EXPECT_EQ(stop<writes_what_a_product_reads>(1, kGroup, 2 * kTile),
            says("writes_what_a_product_reads", 0, 0,
                 "writes what a wgmma of thread (0, 0, 0) at " +
                     place("the product of writes_what_a_product_reads") +
                     " reads until its wgmma_wait: shared memory \"dynamic\", byte 8192 to 8194 of "
                     "16384"));
  EXPECT_EQ(stop<changes_accumulators>(1, kGroup, 2 * kTile),
            says("changes_accumulators", 0, 126,
                 "lane 0 changed the accumulators of the wgmma at " +
                     place("the product of changes_accumulators") + " before this wgmma_wait"));
}

// ---- barriers -----------------------------------------------------------------------------------

__global__ void too_few_bytes(Global<const float> in) {
  FOVEA_SHARED(float, s, 32);
  FOVEA_SHARED(Barrier, full, 1);
  make(full);
  if (threadIdx.x == 0) {
    barrier_arrive_expect(full, 256);
    load_bulk(s + 0, in, 128, full);
  }
  barrier_wait(full, 0);  // stops: too_few_bytes
}
__global__ void too_many_bytes(Global<const float> in) {
  FOVEA_SHARED(float, s, 32);
  FOVEA_SHARED(Barrier, full, 1);
  make(full);
  if (threadIdx.x == 0) {
    barrier_arrive_expect(full, 64);
    load_bulk(s + 0, in, 128, full);  // stops: too_many_bytes
  }
  barrier_wait(full, 0);
}
__global__ void nobody_arrives() {
  FOVEA_SHARED(Barrier, full, 1);
  make(full, 2);
  if (threadIdx.x == 0) barrier_arrive(full);
  barrier_wait(full, 0);  // stops: nobody_arrives
}
__global__ void no_such_barrier() {
  FOVEA_SHARED(Barrier, full, 2);
  make(full);
  barrier_wait(full + 1, 0);  // stops: no_such_barrier
}
__global__ void barrier_not_met() {
  FOVEA_SHARED(Barrier, full, 1);
  if (threadIdx.x == 0) barrier_init(full, 2);
  if (threadIdx.x == 1) barrier_arrive(full);  // stops: barrier_not_met
}
__global__ void barrier_not_fenced(Global<const float> in) {
  FOVEA_SHARED(float, s, 32);
  FOVEA_SHARED(Barrier, full, 1);
  if (threadIdx.x == 0) barrier_init(full, 1);
  sync_block();
  if (threadIdx.x == 0) {
    barrier_arrive_expect(full, 128);
    load_bulk(s + 0, in, 128, full);  // stops: barrier_not_fenced
  }
  barrier_wait(full, 0);
}
__global__ void tile_over_a_barrier() {
  const Shared<float> s = dynamic_shared<float>();
  make(dynamic_shared<Barrier>(64));
  s[threadIdx.x] = 1.0f;  // stops: tile_over_a_barrier
}
TEST(FaultsSm90, Barriers) {
  const Floats memory(32);
  const std::string never =
      "waits at barrier_wait for what no thread will do: phase 0 of the barrier has ";
  EXPECT_EQ(
      stop<too_few_bytes>(1, 32, 0, memory),
      says("too_few_bytes", 0, 0,
           never + "1 of 1 arrivals and 128 of 256 bytes; 0 of 32 threads have left the kernel"));
  EXPECT_EQ(stop<too_many_bytes>(1, 32, 0, memory),
            says("too_many_bytes", 0, 0,
                 "a phase of the barrier expects 64 bytes and gets 128 with this copy"));
  EXPECT_EQ(stop<nobody_arrives>(1, 32, 0),
            says("nobody_arrives", 0, 0,
                 never + "1 of 2 arrivals and 0 of 0 bytes; 0 of 32 threads have left the kernel"));
  EXPECT_EQ(stop<no_such_barrier>(1, 32, 0),
            says("no_such_barrier", 0, 31,
                 "barrier_wait where no barrier_init was: shared memory \"full\", byte 8"));
  EXPECT_EQ(
      stop<barrier_not_met>(1, 32, 0),
      says("barrier_not_met", 0, 1,
           "barrier_arrive of a barrier that thread (0, 0, 0) initialises, with no meeting in "
           "between"));
  EXPECT_EQ(stop<barrier_not_fenced>(1, 32, 0, memory),
            says("barrier_not_fenced", 0, 0,
                 "load_bulk for a barrier whose thread (0, 0, 0) called no fence_barrier_init() "
                 "after barrier_init"));
  EXPECT_EQ(stop<tile_over_a_barrier>(1, 32, 128),
            says("tile_over_a_barrier", 0, 16,
                 "writes over a barrier: shared memory \"dynamic\", byte 64 to 68 of 128"));
}

// ---- warpgroups ---------------------------------------------------------------------------------

__device__ inline void one_product(Where where = Where::current()) {
  float d[32];
  wgmma_fence();
  wgmma<64>(d, left(), right(), false, where);
  wgmma_commit();
  wgmma_wait<0>();
}
__global__ void missing_warp() {
  clear_tiles();
  if (threadIdx.x < 96) one_product();  // stops: missing_warp
}
__global__ void misplaced_warpgroup() {
  clear_tiles();
  if (threadIdx.x >= 64 && threadIdx.x < 192) one_product();  // stops: misplaced_warpgroup
}
__global__ void half_a_warpgroup() {
  clear_tiles();
  one_product();  // stops: half_a_warpgroup
}
__global__ void missing_lane() {
  clear_tiles();
  float d[32];
  wgmma_fence();
  if (threadIdx.x != 7) wgmma<64>(d, left(), right(), false);
  wgmma_commit();
  wgmma_wait<0>();  // stops: missing_lane
}
__global__ void no_wgmma_fence() {
  clear_tiles();
  float d[32];
  wgmma<64>(d, left(), right(), false);  // stops: no_wgmma_fence
}
__global__ void no_wgmma_wait() {
  clear_tiles();
  float d[32];
  wgmma_fence();
  wgmma<64>(d, left(), right(), false);  // stops: no_wgmma_wait
  wgmma_commit();
}
__global__ void misaligned_tile() {
  clear_tiles();
  k_major(dynamic_shared<bf16>(512));  // stops: misaligned_tile
}
__global__ void static_tile() {
  FOVEA_SHARED(bf16, tile, 64 * 64);
  k_major(tile + 0);  // stops: static_tile
}
__global__ void too_many_registers() {
  if (threadIdx.x >= kGroup) increase_registers<240>();  // stops: too_many_registers
}
TEST(FaultsSm90, Warpgroups) {
  EXPECT_EQ(stop<missing_warp>(1, kGroup, 2 * kTile),
            says("missing_warp", 0, 94,
                 "wgmma of warpgroup 0 (warps 0 to 3): warp 3 does not take part"));
  EXPECT_EQ(stop<misplaced_warpgroup>(1, 2 * kGroup, 2 * kTile),
            says("misplaced_warpgroup", 0, 223,
                 "wgmma of warpgroup 0 (warps 0 to 3): warp 0 does not take part"));
  EXPECT_EQ(stop<half_a_warpgroup>(1, 64, 2 * kTile),
            says("half_a_warpgroup", 0, 32,
                 "wgmma of warp 1, whose warpgroup is not whole: the block has 2 warps"));
  EXPECT_EQ(
      stop<missing_lane>(1, kGroup, 2 * kTile),
      says("missing_lane", 0, 31, "wgmma_wait: lane 7 of the warp has started other products"));
  EXPECT_EQ(
      stop<no_wgmma_fence>(1, kGroup, 2 * kTile),
      says("no_wgmma_fence", 0, 127, "wgmma with no wgmma_fence since the last wgmma_commit"));
  EXPECT_EQ(stop<no_wgmma_wait>(1, kGroup, 2 * kTile),
            says("no_wgmma_wait", 0, 127, "leaves the kernel with no wgmma_wait for this wgmma"));
  EXPECT_EQ(stop<misaligned_tile>(1, kGroup, 2 * kTile),
            says("misaligned_tile", 0, 127,
                 "tile_descriptor: a tile with a swizzle of 128 bytes begins at byte 512 of shared "
                 "memory \"dynamic\"; expected a multiple of 1024"));
  EXPECT_EQ(
      stop<static_tile>(1, kGroup, 0),
      says("static_tile", 0, 0,
           "tile_descriptor: a tile with a swizzle of 128 bytes in the static array \"tile\"; "
           "expected dynamic_shared"));
  EXPECT_EQ(
      stop<too_many_registers>(1, 4 * kGroup, 0),
      says("too_many_registers", 0, 287,
           "increase_registers to 240: the block's warpgroups take 67584 registers, of 65536"));
}

}  // namespace
}  // namespace FOVEA_GPU
