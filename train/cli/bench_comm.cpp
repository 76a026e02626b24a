// SPDX-License-Identifier: Apache-2.0
#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/io/file.h"
#include "distributed/device_group.h"
#include "distributed/launch.h"
#include "train/bench/comm.h"
#include "train/cli/cli.h"
#include "train/plan/machine.h"
#include "train/progress.h"

namespace fovea::train::cli {
namespace {

void print(const std::vector<CommRow>& rows, const distributed::Communicator& group,
           const std::string& json) {
  const int ranks = group.size();
  std::cout << std::left << std::setw(16) << concat(ranks, " ranks, ", group.transport())
            << std::right << std::setw(11) << "tensor" << std::setw(12) << "median ms"
            << std::setw(12) << "GB/s a rank" << std::setw(16) << "bytes sent"
            << "  against the formula\n";
  nlohmann::json all = nlohmann::json::array();
  for (const CommRow& row : rows) {
    const int64_t more = row.sent_bytes - row.formula_bytes;
    std::cout << std::left << std::setw(16) << distributed::name(row.operation) << std::right
              << std::setw(11) << short_bytes(row.payload_bytes) << std::fixed
              << std::setprecision(3) << std::setw(12) << row.median_ms << std::setprecision(2)
              << std::setw(12) << row.gb_per_s << std::setw(16) << row.sent_bytes << "  "
              << (more == 0 ? "exact" : concat(more > 0 ? "+" : "", more, " bytes")) << '\n';
    all.push_back({{"operation", distributed::name(row.operation)},
                   {"ranks", ranks},
                   {"transport", group.transport()},
                   {"memory", concat(group.home())},
                   {"payload_bytes", row.payload_bytes},
                   {"median_ms", row.median_ms},
                   {"gb_per_s", row.gb_per_s},
                   {"sent_bytes", row.sent_bytes},
                   {"formula_bytes", row.formula_bytes}});
  }
  if (!json.empty()) replace_file(json, all.dump(2) + "\n");
}

}  // namespace

void add_bench_comm(CLI::App& bench) {
  static int ranks = 0;
  static std::string json, dtype = "f32", device = "cpu";
  static std::vector<std::string> sizes{"1KiB", "64KiB", "1MiB", "16MiB"};
  static double seconds = 0.2;
  CLI::App* comm = bench.add_subcommand(
      "comm", "collectives between ranks: threads of this process, or processes under mpirun");
  comm->add_option("--ranks", ranks, "threads; under mpirun the processes are the ranks")
      ->check(whole_number(1, 1024));
  comm->add_option("--dtype", dtype, "f32 or bf16")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  comm->add_option("--device", device, "where the tensors are")->capture_default_str();
  comm->add_option("--sizes", sizes, "of tensors, as in 64KiB,1GiB")
      ->capture_default_str()
      ->delimiter(',');
  comm->add_option("--json", json, "also write the rows to this file");
  comm->add_option("--seconds", seconds, "of measurement, per row")
      ->capture_default_str()
      ->check(number(0.0, 3600.0));
  comm->callback([] {
    std::vector<int64_t> bytes;
    for (const std::string& size : sizes) {
      bytes.push_back(static_cast<int64_t>(parse_quantity("--sizes", size, "B")));
      if (bytes.back() < 1)
        throw config::ConfigError(concat("--sizes: expected 1 byte or more, found \"", size, '"'));
    }
    distributed::run_job(ranks, [&bytes](const distributed::Communicator& job) {
      const Device where = parse_device(device);
      const distributed::Communicator group = distributed::device_group(job, where);
      const std::vector<CommRow> rows =
          bench_comm(job, group, bytes, parse_dtype(dtype), seconds, where);
      if (job.rank() == 0) print(rows, group, json);
    });
  });
}

}  // namespace fovea::train::cli
