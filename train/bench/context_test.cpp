// SPDX-License-Identifier: Apache-2.0
#include "train/bench/context.h"

#include <gtest/gtest.h>

#include "core/testing/devices.h"
#include "core/testing/error_of.h"
#include "distributed/device_group.h"
#include "distributed/launch.h"
#include "train/bench/comm.h"

namespace fovea::train {
namespace {

ContextBench small(int ranks) {
  ContextBench bench;
  bench.ranks = ranks;
  bench.heads = 4, bench.kv_heads = 2, bench.tokens = 64, bench.dim = 8;
  return bench;
}

TEST(ContextBench, EveryStrategySendsWhatItsFormulaSays) {
  ContextBench bench = small(4);
  bench.masks = benchmark_masks();
  bench.strategies = {"ring", "gather", "double_ring", "ulysses", "usp"};
  distributed::run_job(4, [&](const distributed::Communicator& world) {
    const std::vector<ContextRow> rows = bench_context(world, bench, Dtype::f32, 0.0, kCpu);
    EXPECT_EQ(rows.size(), 60U);
    for (const ContextRow& row : rows) {
      EXPECT_GT(row.sent_bytes, 0);
      EXPECT_EQ(row.sent_bytes, row.formula_bytes) << row.mask << ", " << row.strategy;
      EXPECT_GE(row.balance.stepwise, row.balance.total - 1e-12);
      EXPECT_GE(row.waiting, 0.0);
      EXPECT_LE(row.waiting, 1.0);
      EXPECT_GT(row.forward_ms, 0.0);
    }
  });
}

// A window of all ranks is one ring, and a mesh of the caller's is taken as it is.
TEST(ContextBench, TheSmallestMeshesSendWhatTheirFormulasSay) {
  ContextBench bench = small(2);
  bench.strategies = {"double_ring", "usp", "ulysses"};
  distributed::run_job(2, [&](const distributed::Communicator& world) {
    for (const ContextRow& row : bench_context(world, bench, Dtype::f32, 0.0, kCpu)) {
      EXPECT_GT(row.sent_bytes, 0);
      EXPECT_EQ(row.sent_bytes, row.formula_bytes) << row.strategy;
      EXPECT_GT(row.exchange_ms, 0.0);
      EXPECT_EQ(row.transport, "threads");
    }
  });
}

// Tensors of a device by its group: the same bytes.
TEST(ContextBench, BytesOfADeviceAreThoseOfItsGroup) {
  ContextBench bench = small(2);
  bench.heads = 2, bench.kv_heads = 2, bench.tokens = 8, bench.dim = 4;
  bench.strategies = {"ring", "ulysses"};
  for (const Device device : devices_to_test()) {
    if (device.kind == Device::Kind::cuda) continue;  // one card, which ranks do not share here
    distributed::run_job(2, [&](const distributed::Communicator& world) {
      for (const ContextRow& row : bench_context(world, bench, Dtype::f32, 0.0, device))
        EXPECT_EQ(row.sent_bytes, row.formula_bytes) << row.strategy << " on " << device;
    });
  }
}

TEST(CommBench, EveryOperationSendsWhatItsFormulaSays) {
  for (const Device device : devices_to_test()) {
    distributed::run_job(3, [&](const distributed::Communicator& job) {
      const distributed::Communicator group = distributed::device_group(job, device);
      const auto rows = bench_comm(job, group, {100, 4096}, Dtype::f32, 0.0, device);
      EXPECT_EQ(rows.size(), 13u);
      for (const CommRow& row : rows) {
        EXPECT_EQ(row.sent_bytes, row.formula_bytes) << distributed::name(row.operation);
        EXPECT_GT(row.median_ms, 0.0);
      }
    });
  }
}

TEST(ContextBench, OrdersDifferInBalance) {
  ContextBench bench = small(2);
  bench.orders = {"contiguous", "zigzag"};
  distributed::run_job(2, [&](const distributed::Communicator& world) {
    const std::vector<ContextRow> rows = bench_context(world, bench, Dtype::f32, 0.0, kCpu);
    ASSERT_EQ(rows.size(), 2U);
    EXPECT_NEAR(rows[0].balance.total, 1.5, 0.02);
    EXPECT_EQ(rows[1].balance.total, 1.0);
    EXPECT_NEAR(rows[0].allowed, 65.0 / 128, 1e-12);
  });
}

// Each mask is what its name says: the pairs of a few.
TEST(ContextBench, MasksAreTheBenchmarks) {
  const int64_t N = 64;
  const auto pairs = [&](const std::string& name, uint64_t seed) {
    const attention::Mask mask = benchmark_mask(name, N, seed);
    int64_t sum = 0;
    for (int64_t i = 0; i < N; ++i)
      for (int64_t j = 0; j < N; ++j) sum += mask.allowed(0, 0, i, j, N, N) ? 1 : 0;
    return sum;
  };
  EXPECT_EQ(pairs("full", 1), N * N);
  EXPECT_EQ(pairs("causal", 1), N * (N + 1) / 2);
  EXPECT_EQ(pairs("sliding_window_causal", 1), 17 * N - 16 * 17 / 2);
  EXPECT_EQ(pairs("sliding_window", 1), 33 * N - 16 * 17);
  for (const uint64_t seed : {1, 2, 3}) {
    EXPECT_LE(pairs("causal_document", seed), pairs("full_document", seed));
    EXPECT_LE(pairs("causal_document", seed), pairs("share_question", seed));
    EXPECT_LE(pairs("share_question", seed), pairs("causal", seed));
    EXPECT_LE(pairs("causal_document", seed), pairs("prefix_lm_document", seed));
    EXPECT_LE(pairs("causal_document", seed), pairs("causal_blockwise", seed));
  }
  EXPECT_NE(error_of([] { benchmark_mask("casual", 64); }).find("nearest is causal"),
            std::string::npos);
}

TEST(ContextBench, RefusesWhatHasNoPlace) {
  const auto refused = [](const ContextBench& bench) {
    return error_of([&] {
      distributed::run_job(bench.ranks, [&](const distributed::Communicator& world) {
        bench_context(world, bench, Dtype::f32, 0.0, kCpu);
      });
    });
  };
  ContextBench bench = small(3);
  bench.strategies = {"double_ring"};
  EXPECT_NE(refused(bench).find("double_ring has windows of 2 ranks"), std::string::npos);
  bench = small(2);
  bench.mesh = distributed::MeshSizes{1, 3, 1};
  EXPECT_NE(refused(bench).find("are 3 ranks, but there are 2"), std::string::npos);
  bench.mesh = distributed::MeshSizes{1, 2, 1};
  bench.strategies = {"usp"};
  EXPECT_NE(refused(bench).find("makes its own mesh"), std::string::npos);
  bench = small(2);
  bench.tokens = 30;
  EXPECT_NE(refused(bench).find("expected a multiple of 4"), std::string::npos);
}

}  // namespace
}  // namespace fovea::train
