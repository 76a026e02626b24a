// SPDX-License-Identifier: Apache-2.0
#include <iostream>

#include "train/cli/cli.h"

int main(int argc, char** argv) {
  using namespace fovea::train;
  CLI::App program("Fovea: train small GPTs and ViTs with any attention, from experiment files.", "fovea");
  program.set_version_flag("--version", "fovea " FOVEA_VERSION);
  program.require_subcommand(1);
  program.failure_message(CLI::FailureMessage::simple);
  int status = 0;
  cli::add_train(program, status);
  cli::add_use(program, status);
  cli::add_report(program, status);
  cli::add_data(program, status);
  cli::add_op(program, status);
  cli::add_bench(program, status);
  cli::add_doctor(program, status);
  try {
    program.parse(argc, argv);
    return status;
  } catch (const CLI::ParseError& error) {
    return program.exit(error) == 0 ? 0 : 2;
  } catch (const fovea::config::ConfigError& error) {
    std::cerr << "fovea: " << error.what() << '\n';
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "fovea: " << error.what() << '\n';
    return 1;
  }
}
