// SPDX-License-Identifier: Apache-2.0
#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>

#include "attention/golden.h"
#include "attention/registry.h"
#include "train/cli/cli.h"

namespace fovea::train::cli {
namespace {

nlohmann::json to_json(const std::vector<attention::TensorSpec>& specs) {
  nlohmann::json list = nlohmann::json::array();
  for (const auto& spec : specs)
    list.push_back({{"name", spec.name}, {"shape", spec.shape}, {"optional", spec.optional}});
  return list;
}

void list_json() {
  nlohmann::json all = nlohmann::json::array();
  for (const auto& [name, system] : attention::systems()) {
    all.push_back({{"name", name},
                   {"title", system.title},
                   {"paper", system.paper},
                   {"family", system.family},
                   {"inputs", to_json(system.op.inputs)},
                   {"params", to_json(system.op.params)},
                   {"outputs", to_json(system.op.outputs)},
                   {"options", config::resolved_toml(*system.op.options())},
                   {"module_options", config::resolved_toml(*system.options())}});
  }
  std::cout << all.dump(2) << '\n';
}

void list() {
  for (const auto& [name, system] : attention::systems()) {
    std::cout << name << "  [" << system.family << "]  " << system.title << "  (arXiv "
              << system.paper << ")\n";
    for (const auto& [what, specs] :
         {std::pair{"in", &system.op.inputs}, std::pair{"param", &system.op.params},
          std::pair{"out", &system.op.outputs}}) {
      for (const auto& spec : *specs)
        std::cout << "  " << std::setw(5) << what << "  " << spec.name << ' ' << spec.shape
                  << (spec.optional ? ", optional" : "") << '\n';
    }
    std::cout << "  options of the operator:\n";
    config::print_help(*system.op.options(), std::cout);
    std::cout << "  options of the module ([model.attention]):\n";
    config::print_help(*system.options(), std::cout);
  }
}

int check(const std::vector<std::string>& files, Dtype dtype, Device device) {
  int failed = 0;
  for (const std::string& file : files) {
    std::cout << file << '\n';
    for (const attention::GoldenError& e : attention::check_golden(file, dtype, device)) {
      std::cout << "  " << (e.passed() ? "ok    " : "FAILED") << "  " << std::left << std::setw(20)
                << e.tensor << std::right << "  error " << e.error << "  tolerance " << e.tolerance
                << '\n';
      failed += e.passed() ? 0 : 1;
    }
  }
  if (failed > 0) std::cout << failed << " tensors past their tolerance\n";
  return failed > 0 ? 1 : 0;
}

// What the user asked for, or the most exact that the device has.
Dtype dtype_for(const std::string& asked, Device device) {
  if (!asked.empty()) return parse_dtype(asked);
  return device.is_cpu() ? Dtype::f64 : Dtype::f32;
}

}  // namespace

void add_op(CLI::App& program, int& status) {
  CLI::App* op = program.add_subcommand(
      "op", "the attention systems' operators, and checks against reference files");
  op->require_subcommand(1);
  static bool json = false;
  static std::vector<std::string> files;
  static std::string dtype, device = "cpu", file, out;
  CLI::App* show = op->add_subcommand("list", "systems with their tensors and options");
  show->add_flag("--json", json, "for programs");
  show->callback([] { json ? list_json() : list(); });
  CLI::App* verify = op->add_subcommand(
      "check",
      "run golden files forward and backward; exit code 1 when a tensor is past its tolerance");
  verify->add_option("FILE", files, "golden files (.h5)")->required();
  verify->callback([&status] {
    const Device on = parse_device(device);
    status = check(files, dtype_for(dtype, on), on);
  });
  CLI::App* run = op->add_subcommand("run", "run a file's inputs and write outputs and gradients");
  run->add_option("FILE", file, "golden file, or one with inputs alone")->required();
  run->add_option("--out", out, "file to write")->required();
  run->callback([] {
    const Device on = parse_device(device);
    attention::write_golden_result(attention::run_golden(file, dtype_for(dtype, on), on), out);
    std::cout << out << '\n';
  });
  for (CLI::App* verb : {verify, run}) {
    verb->add_option("--dtype", dtype, "f64 (the cpu's default), f32 (the others') or bf16")
        ->check(CLI::IsMember({"f64", "f32", "bf16"}));
    verb->add_option("--device", device, "where it runs")->capture_default_str();
  }
}

}  // namespace fovea::train::cli
