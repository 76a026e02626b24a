// SPDX-License-Identifier: Apache-2.0
#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/io/file.h"
#include "distributed/launch.h"
#include "distributed/mpi.h"
#include "train/bench/context.h"
#include "train/cli/cli.h"

namespace fovea::train::cli {
namespace {

void print(const std::vector<ContextRow>& rows, int ranks, const std::string& json) {
  const std::string title = concat(ranks, " ranks", rows.empty() ? "" : ", ",
                                   rows.empty() ? std::string() : rows[0].transport);
  std::cout << std::left << std::setw(24) << title << std::setw(13) << "strategy" << std::setw(6)
            << "R x U" << std::setw(12) << " order" << std::right << std::setw(9) << "allowed"
            << std::setw(9) << "balance" << std::setw(9) << "by step" << std::setw(12)
            << "forward ms" << std::setw(13) << "backward ms" << std::setw(17) << "GFLOP/s a rank"
            << std::setw(13) << "exchange ms" << std::setw(10) << "waiting" << std::setw(14)
            << "bytes sent"
            << "  against the formula\n";
  nlohmann::json all = nlohmann::json::array();
  for (const ContextRow& row : rows) {
    const int64_t more = row.sent_bytes - row.formula_bytes;
    std::cout << std::left << std::setw(24) << row.mask << std::setw(13) << row.strategy
              << std::setw(6) << concat(row.mesh.ring, " x ", row.mesh.ulysses) << ' '
              << std::setw(11) << distributed::name(row.order) << std::right << std::fixed
              << std::setprecision(1) << std::setw(7) << 100 * row.allowed << " %"
              << std::setprecision(3) << std::setw(9) << row.balance.total << std::setw(9)
              << row.balance.stepwise << std::setprecision(2) << std::setw(12) << row.forward_ms
              << std::setw(13) << row.backward_ms << std::setprecision(1) << std::setw(17)
              << row.gflops << std::setprecision(2) << std::setw(13) << row.exchange_ms
              << std::setprecision(0) << std::setw(8) << 100 * row.waiting << " %" << std::setw(14)
              << row.sent_bytes << "  "
              << (more == 0 ? "exact" : concat(more > 0 ? "+" : "", more, " bytes")) << '\n';
    all.push_back({{"mask", row.mask},
                   {"strategy", row.strategy},
                   {"ring", row.mesh.ring},
                   {"ulysses", row.mesh.ulysses},
                   {"order", distributed::name(row.order)},
                   {"allowed", row.allowed},
                   {"balance", row.balance.total},
                   {"balance_by_step", row.balance.stepwise},
                   {"forward_ms", row.forward_ms},
                   {"backward_ms", row.backward_ms},
                   {"gflops_a_rank", row.gflops},
                   {"exchange_ms", row.exchange_ms},
                   {"waiting", row.waiting},
                   {"transport", row.transport},
                   {"sent_bytes", row.sent_bytes},
                   {"formula_bytes", row.formula_bytes}});
  }
  if (!json.empty()) replace_file(json, all.dump(2) + "\n");
}

}  // namespace

BenchOverRanks add_bench_context(CLI::App& attention) {
  struct Arguments {
    ContextBench bench;
    int ranks = 0, ring = 0, ulysses = 0;
  };
  auto a = std::make_shared<Arguments>();
  attention.add_option("--ranks", a->ranks, "over ranks: threads; under mpirun they are processes")
      ->check(whole_number(1, 1024));
  attention.add_option("--mesh.ring", a->ring, "groups over which a sequence lies")
      ->check(whole_number(1, 1024));
  attention.add_option("--mesh.ulysses", a->ulysses, "ranks of a group, which share its heads")
      ->check(whole_number(1, 1024));
  std::vector<std::string> masks = benchmark_masks();
  masks.emplace_back("all");
  attention
      .add_option("--mask", a->bench.masks,
                  "over ranks: names as in [model.attention] of long_context, or all")
      ->delimiter(',')
      ->check(CLI::IsMember(masks));
  attention
      .add_option("--strategy", a->bench.strategies,
                  "over ranks: ring, gather, double_ring; without --mesh also ulysses and usp")
      ->delimiter(',')
      ->check(CLI::IsMember({"ring", "gather", "double_ring", "ulysses", "usp"}));
  attention.add_option("--order", a->bench.orders, "over ranks: of tokens")
      ->delimiter(',')
      ->check(CLI::IsMember({"contiguous", "striped", "zigzag", "dispatched"}));
  attention.add_option("--kv-heads", a->bench.kv_heads, "over ranks; 0: as many as heads")
      ->check(whole_number(0, 1 << 16));
  return [a, &attention](const std::string& shape, Dtype dtype, double seconds, Device device,
                         const std::string& json) {
    ContextBench& bench = a->bench;
    if (a->ranks == 0 && a->ring == 0 && a->ulysses == 0 && !distributed::started_by_mpi()) {
      for (const char* option : {"--mask", "--strategy", "--order", "--kv-heads"}) {
        if (attention.count(option) > 0)
          throw config::ConfigError(concat("bench: ", option,
                                           " is of attention over ranks; say how many with "
                                           "--ranks"));
      }
      return false;
    }
    if (attention.count("--causal") > 0)
      throw config::ConfigError("bench: over ranks the mask is named with --mask, not --causal");
    if (a->ring > 0 || a->ulysses > 0)
      bench.mesh = {1, std::max(1, a->ring), std::max(1, a->ulysses)};
    int ranks = a->ranks;
    if (ranks == 0 && bench.mesh && !distributed::started_by_mpi()) ranks = bench.mesh->ranks();
    if (bench.masks == std::vector<std::string>{"all"}) bench.masks = benchmark_masks();
    long long b = 0, h = 0, n = 0, d = 0;
    char rest = 0;
    FOVEA_CHECK(std::sscanf(shape.c_str(), "%lldx%lldx%lldx%lld%c", &b, &h, &n, &d, &rest) == 4 &&
                    b > 0 && h > 0 && n > 0 && d > 0,
                "bench: shape \"", shape, "\"; expected BxHxNxD, as in 1x4x4096x64");
    bench.batch = b, bench.heads = h, bench.tokens = n, bench.dim = d;
    distributed::run_job(ranks, [&](const distributed::Communicator& job) {
      ContextBench mine = bench;
      mine.ranks = job.size();
      const std::vector<ContextRow> rows = bench_context(job, mine, dtype, seconds, device);
      if (job.rank() == 0) print(rows, job.size(), json);
    });
    return true;
  };
}

}  // namespace fovea::train::cli
