// SPDX-License-Identifier: Apache-2.0
#pragma once
// The verbs of the program, one file each. Only this folder talks to the terminal. A verb reports
// failure by throwing; main() turns that into one line and an exit code: 2 for a wrong config or
// flag, 1 for anything else.

#include <CLI/CLI.hpp>

#include "train/options.h"
#include "train/run_folder.h"
#include "train/trainer.h"

namespace fovea::train::cli {

// Each adds its verb; `status` receives the exit code when the verb runs.
void add_train(CLI::App& program, int& status);  // train, resume
void add_use(CLI::App& program, int& status);    // eval, sample
void add_report(CLI::App& program, int& status);
void add_data(CLI::App& program, int& status);
void add_op(CLI::App& program, int& status);
void add_bench(CLI::App& program, int& status);
void add_bench_comm(CLI::App& bench);  // bench comm
// bench attention over ranks: adds its options. What it returns runs them, or says that the command
// line asked for none.
using BenchOverRanks = std::function<bool(const std::string& shape, Dtype dtype, double seconds,
                                          Device device, const std::string& json)>;
BenchOverRanks add_bench_context(CLI::App& attention);
void add_plan(CLI::App& program, int& status);
void add_doctor(CLI::App& program, int& status);

// A value of an option from `least` to `most`, both allowed; anything else is told in one line.
CLI::Validator whole_number(int64_t least, int64_t most);
CLI::Validator number(double least, double most);

// The experiment of a run folder, as its config.toml says, for one rank.
void load_experiment(Experiment& experiment, const RunFolder& folder);

}  // namespace fovea::train::cli
