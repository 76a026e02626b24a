// SPDX-License-Identifier: Apache-2.0
#include <cctype>
#include <charconv>
#include <csignal>
#include <filesystem>
#include <iostream>

#include "core/version.h"
#include "core/warning.h"
#include "distributed/mpi.h"
#include "train/cli/cli.h"

namespace fovea::train::cli {

CLI::Validator whole_number(int64_t least, int64_t most) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        int64_t value = 0;
        const auto [rest, code] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool good = code == std::errc{} && rest == text.data() + text.size() &&
                          value >= least && value <= most;
        return good ? ""
                    : concat("expected an integer from ", least, " to ", most, ", found \"", text,
                             '"');
      },
      "");
}

CLI::Validator number(double least, double most) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        double value = 0.0;
        const auto [rest, code] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool good = code == std::errc{} && rest == text.data() + text.size() &&
                          value >= least && value <= most;
        return good ? ""
                    : concat("expected a number from ", least, " to ", most, ", found \"", text,
                             '"');
      },
      "");
}

namespace {

// Follows the arguments down the verbs; throws naming the first that is none, with the nearest
// there is.
void check_verbs(const CLI::App& program, int argc, char** argv) {
  const CLI::App* app = &program;
  std::string path;
  for (int i = 1; i < argc; ++i) {
    std::vector<std::string> verbs;
    const CLI::App* next = nullptr;
    for (const CLI::App* verb : app->get_subcommands([](const CLI::App*) { return true; })) {
      verbs.push_back(verb->get_name());
      if (verb->get_name() == argv[i]) next = verb;
    }
    if (verbs.empty() || std::string_view(argv[i]).starts_with('-')) return;
    if (next == nullptr) {
      const std::string near = config::nearest(argv[i], verbs);
      std::string known;
      for (const std::string& verb : verbs) known += ' ' + verb;
      throw config::ConfigError(concat("unknown verb \"", path, argv[i], "\"; expected one of",
                                       known, near.empty() ? "" : "; did you mean " + near + "?"));
    }
    path += next->get_name() + ' ';
    app = next;
  }
}

// One line for the terminal. Control characters, which a name out of a damaged file may hold, are
// not for it.
std::string complaint(std::string line) {
  const std::string rank = distributed::name_of_process();
  if (!rank.empty() && !line.starts_with("rank ")) line = concat(rank, ": ", line);
  for (char& c : line) {
    if (std::iscntrl(static_cast<unsigned char>(c)) != 0 && c != '\n') c = '?';
  }
  return concat("fovea: ", line, '\n');
}

void complain(const std::string& line) { std::cerr << complaint(line); }

// What ends the program.
int fail(int status, const std::string& line) {
  distributed::let_lower_ranks_speak();
  complain(line);
  return status;
}

}  // namespace
}  // namespace fovea::train::cli

// Returns the exit code.
static int run(int argc, char** argv) {
  using namespace fovea::train;
  CLI::App program("Fovea: train small GPTs and ViTs with any attention, from experiment files.",
                   "fovea");
  program.set_version_flag("--version", fovea::concat("fovea ", fovea::version()));
  program.require_subcommand(1);
  program.failure_message([](const CLI::App* app, const CLI::Error& error) {
    while (app->get_subcommands().size() == 1) app = app->get_subcommands().front();
    std::string verb = app->get_name();
    for (const CLI::App* above = app->get_parent(); above != nullptr; above = above->get_parent())
      verb = above->get_name() + ' ' + verb;
    return cli::complaint(fovea::concat(error.what(), "; see ", verb, " --help"));
  });
  std::signal(SIGXFSZ, SIG_IGN);  // a full quota is then an error of write(2), told like any other
  fovea::set_warning_handler(cli::complain);
  int status = 0;
  cli::add_train(program, status);
  cli::add_use(program, status);
  cli::add_report(program, status);
  cli::add_data(program, status);
  cli::add_op(program, status);
  cli::add_bench(program, status);
  cli::add_plan(program, status);
  cli::add_doctor(program, status);
  try {
    cli::check_verbs(program, argc, argv);
    program.parse(argc, argv);
    return status;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) fovea::distributed::let_lower_ranks_speak();
    return program.exit(error) == 0 ? 0 : 2;
  } catch (const fovea::config::ConfigError& error) {
    return cli::fail(2, error.what());
  } catch (const std::filesystem::filesystem_error& error) {
    return cli::fail(1,
                     fovea::concat("file ", error.path1().string(), ": ", error.code().message()));
  } catch (const std::bad_alloc&) {
    return cli::fail(1, "out of memory; ask for less (batch, context, model) or free some");
  } catch (const std::exception& error) {
    return cli::fail(1, error.what());
  }
}

int main(int argc, char** argv) {
  const int status = run(argc, argv);
  fovea::distributed::end_mpi(status);
  return status;
}
