// SPDX-License-Identifier: Apache-2.0
#pragma once
// Attention over ranks, mask by mask and strategy by strategy (2510.17896): how long, how well the
// pairs are shared out, how much of the time ranks wait, and whether the bytes are those of the
// formulas (train/plan/cost.h).

#include "train/plan/cost.h"

namespace fovea::train {

// The twelve static masks of the benchmark by name, of N tokens. Documents have its lengths (drawn
// from `seed`), a window N/4 tokens or 1024, global windows N/16, blocks N/16; prefixes half of
// what they may be.
const std::vector<std::string>& benchmark_masks();
attention::Mask benchmark_mask(const std::string& name, int64_t N, uint64_t seed = 1);

struct ContextBench {
  int ranks = 4;
  // Absent: what the strategy says.
  std::optional<distributed::MeshSizes> mesh;
  // ring, gather, double_ring (windows of 2); without a mesh also ulysses and usp.
  std::vector<std::string> masks{"causal"}, strategies{"ring"}, orders{"zigzag"};
  int64_t batch = 1, heads = 8, kv_heads = 0, tokens = 4096, dim = 64;
};

struct ContextRow {
  std::string mask, strategy;
  distributed::MeshSizes mesh;
  distributed::Order order;
  std::string transport;  // of the exchanges: Communicator::transport()
  double allowed = 1;     // share of the N^2 pairs
  distributed::Balance balance = {1, 1};
  double forward_ms = 0, backward_ms = 0;  // medians, of the slowest rank
  double gflops = 0;                       // of one rank, both passes: 3.5 x 4 pairs H D
  double exchange_ms = 0;  // median of both passes where no query sees a key: they only exchange
  double waiting = 0;      // share of the time in which a rank's host stands still, mean; on a card
                           // also while the card computes
  int64_t sent_bytes = 0, formula_bytes = 0;  // by all ranks, forward and backward
};

// All ranks of `world` call it and get the same rows. Throws, naming it, for a strategy that the
// mesh has no place for.
std::vector<ContextRow> bench_context(const distributed::Communicator& world,
                                      const ContextBench& bench, Dtype dtype, double seconds,
                                      Device device);

}  // namespace fovea::train
