// SPDX-License-Identifier: Apache-2.0
#include "train/bench/bench.h"

#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/allocator.h"
#include "core/io/file.h"
#include "core/ops/matmul.h"
#include "train/cli/cli.h"
#include "train/progress.h"

namespace fovea::train::cli {
namespace {

void print(const std::vector<BenchRow>& rows, const std::string& json) {
  std::cout << std::left << std::setw(44) << "" << std::right << std::setw(11) << "median ms"
            << std::setw(9) << "IQR" << std::setw(12) << "rate" << std::setw(20) << ""
            << std::setw(10) << "of limit" << std::setw(12) << "memory" << '\n';
  nlohmann::json all = nlohmann::json::array();
  for (const BenchRow& row : rows) {
    std::cout << std::left << std::setw(44) << row.name << std::right << std::fixed
              << std::setprecision(2) << std::setw(11) << row.median_ms << std::setw(9)
              << row.iqr_ms << std::setw(12) << std::setprecision(1) << row.rate << ' ' << std::left
              << std::setw(19) << row.unit << std::right << std::setw(8) << std::setprecision(0)
              << 100.0 * row.of_limit << " %" << std::setw(12) << short_bytes(row.peak_bytes)
              << '\n';
    all.push_back({{"name", row.name},
                   {"median_ms", row.median_ms},
                   {"iqr_ms", row.iqr_ms},
                   {"rate", row.rate},
                   {"unit", row.unit},
                   {"of_limit", row.of_limit},
                   {"peak_bytes", row.peak_bytes},
                   {"reserved_bytes", row.reserved_bytes},
                   {"fragmentation", row.fragmentation}});
  }
  if (!json.empty()) replace_file(json, all.dump(2) + "\n");
}

}  // namespace

void add_bench(CLI::App& program, int&) {
  CLI::App* bench =
      program.add_subcommand("bench", "time the parts against this machine's measured limits");
  bench->require_subcommand(1);
  static std::string json;
  static double seconds = 1.5;
  static std::vector<std::string> shapes;
  static std::string dtype = "f32", device = "cpu";
  static bool causal = true, tf32 = false;
  static StepBench step;
  CLI::App* gemm = bench->add_subcommand("gemm", "matrix products");
  gemm->callback([] { print(bench_gemm(tf32, seconds, parse_device(device)), json); });
  CLI::App* memory =
      bench->add_subcommand("memory", "AdamW, norms, cross-entropy against the memory bandwidth");
  memory->callback(
      [] { print(bench_memory(parse_dtype(dtype), seconds, parse_device(device)), json); });
  CLI::App* attention =
      bench->add_subcommand("attention", "softmax attention forward, backward and both");
  attention->add_option("--shapes", shapes, "B x H x N x D, as in 1x4x4096x64")->delimiter(',');
  attention->add_option("--causal", causal, "0 or 1")->capture_default_str();
  static const BenchOverRanks over_ranks = add_bench_context(*attention);
  attention->callback([] {
    if (over_ranks(shapes.empty() ? "1x8x4096x64" : shapes.front(), parse_dtype(dtype), seconds,
                   parse_device(device), json))
      return;
    print(bench_attention(
              shapes.empty() ? std::vector<std::string>{"1x4x4096x64", "8x6x256x64"} : shapes,
              parse_dtype(dtype), causal, seconds, parse_device(device)),
          json);
  });
  CLI::App* whole = bench->add_subcommand("step", "a whole training step of a GPT");
  whole->add_option("--layers", step.layers, "transformer blocks")->capture_default_str();
  whole->add_option("--heads", step.heads, "attention heads; must divide dim")
      ->capture_default_str();
  whole->add_option("--dim", step.dim, "channels")->capture_default_str();
  whole->add_option("--context", step.context, "tokens of a sequence")->capture_default_str();
  whole->add_option("--vocab", step.vocab, "tokens of the vocabulary")->capture_default_str();
  whole->add_option("--batch", step.batch, "sequences of a step")->capture_default_str();
  whole->callback([] {
    const Tf32Scope products(tf32);
    print(bench_step(step, parse_dtype(dtype), seconds, parse_device(device)), json);
  });
  for (CLI::Option* size :
       whole->get_options([](const CLI::Option* o) { return o->get_name() != "--help"; }))
    size->check(whole_number(1, 1 << 24));
  whole->add_option("--graph", step.graph, "the step as one CUDA graph: auto, on or off")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "on", "off"}));
  add_bench_comm(*bench);
  for (CLI::App* verb : {gemm, memory, attention, whole}) {
    verb->add_option("--device", device, "where it runs")->capture_default_str();
    verb->add_option("--json", json, "also write the rows to this file");
    verb->add_option("--seconds", seconds, "of measurement, per row")
        ->capture_default_str()
        ->check(number(0.0, 3600.0));
  }
  for (CLI::App* verb : {gemm, whole})
    verb->add_flag("--tf32", tf32, "f32 products on a card by tensor cores (train.tf32)");
  for (CLI::App* verb : {memory, attention, whole})
    verb->add_option("--dtype", dtype, "f32 or bf16")
        ->capture_default_str()
        ->check(CLI::IsMember({"f32", "bf16"}));
}

}  // namespace fovea::train::cli
