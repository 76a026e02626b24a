// SPDX-License-Identifier: Apache-2.0
#pragma once
// Benchmarks: medians with their spread, as rates and as shares of what this machine can do
// (roof.h).

#include <cstdint>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"

namespace fovea::train {

struct BenchRow {
  std::string name;
  double median_ms = 0.0, iqr_ms = 0.0;
  double rate = 0.0;  // in `unit`
  std::string unit;
  double of_limit = 0.0;       // rate over the limit that applies, measured in turns with it
  int64_t peak_bytes = 0;      // allocated during the call, inputs not counted
  int64_t reserved_bytes = 0;  // held from the system after the timings, inputs included
  double fragmentation = 0.0;  // of what is cached then
};

// Each measures for about `seconds` a row. The interpreted device shows that it runs, on sizes of
// its own; its speed means nothing.
// tf32: of f32 products, as train.tf32.
std::vector<BenchRow> bench_gemm(bool tf32, double seconds, Device device);
// AdamW; LayerNorm, RMSNorm and cross-entropy of `dtype`, forward and backward; in GB/s of the
// bytes that must move.
std::vector<BenchRow> bench_memory(Dtype dtype, double seconds, Device device);
// shapes "BxHxNxD"; counts 4 B H N N D FLOPs a forward (half when causal) and 2.5 times that a
// backward; the limit is f32 multiply-adds (bf16 products can pass 100 %). On GPU devices the
// backward also without a fixed order of its sums (ScoreOptions::deterministic = false).
std::vector<BenchRow> bench_attention(const std::vector<std::string>& shapes, Dtype dtype,
                                      bool causal, double seconds, Device device);

struct StepBench {
  std::string graph = "auto";  // as train.graph
  int64_t layers = 6, heads = 6, dim = 384, context = 256, vocab = 256, batch = 8;
};
// Forward, backward, clip and AdamW of a GPT on random tokens, in tokens/s.
std::vector<BenchRow> bench_step(const StepBench& sizes, Dtype dtype, double seconds,
                                 Device device);

}  // namespace fovea::train
