// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <csignal>
#include <iostream>

#include "core/io/file.h"
#include "nn/transformer.h"
#include "train/cli/cli.h"
#include "train/report/report.h"

namespace fovea::train::cli {
namespace {

std::atomic<int> stop_signal{0};

// The first signal asks the loop to save and end; a second one ends the program at once.
void catch_signals() {
  struct sigaction action {};
  action.sa_handler = [](int signal) { stop_signal = signal; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

void describe(const Experiment& experiment, Trainer& trainer, const RunFolder& folder) {
  const data::Description& d = trainer.data();
  std::cout << experiment.model.kind() << " with "
            << short_count(static_cast<double>(trainer.model().module().parameter_count()))
            << " parameters on " << d.name;
  if (d.is_tokens)
    std::cout << " (vocabulary " << d.vocab_size << ", context " << d.context << ")";
  else
    std::cout << " (" << d.channels << " x " << d.height << " x " << d.width << ", " << d.classes
              << " classes)";
  std::cout << ", " << experiment.train.precision << ", " << experiment.train.steps << " steps of "
            << experiment.train.batch << '\n'
            << folder.path().string() << std::endl;
}

// What asks for less memory, of the options that this experiment has.
std::string smaller_step(Experiment& experiment, const data::Description& d) {
  const TrainOptions& train = experiment.train;
  std::vector<std::string> ways;
  if (train.micro_batch > 1)
    ways.push_back(concat("lower train.micro_batch (now ", train.micro_batch, ")"));
  if (train.micro_batch == 0 && train.batch > 1)
    ways.push_back(concat("set train.micro_batch below the batch of ", train.batch));
  if (d.is_tokens) ways.push_back(concat("lower data.context (now ", d.context, ")"));
  if (const auto* model = dynamic_cast<nn::TransformerOptions*>(&experiment.model.options())) {
    if (!model->recompute) ways.emplace_back("turn on model.recompute");
    ways.push_back(concat("lower model.dim (now ", model->dim, ")"));
  }
  std::string all;
  for (size_t i = 0; i < ways.size(); ++i)
    all += (i == 0 ? "" : i + 1 < ways.size() ? ", " : ", or ") + ways[i];
  return all;
}

// What a run leaves after its last step, the report last.
void write_pages(const Experiment& experiment, Trainer& trainer, const RunFolder& folder) {
  if (const std::string text = trainer.sample_text(experiment.train.sample_tokens); !text.empty()) {
    replace_file(folder.sample(), text + "\n");
    std::cout << "\n" << text << "\n\n";
  }
  write_report({folder.path()}, folder.report());
}

int run(Experiment& experiment, Trainer& trainer, const RunFolder& folder) {
  describe(experiment, trainer, folder);
  Outcome outcome;
  try {
    outcome = trainer.train(folder, stop_signal, std::cout, isatty(STDOUT_FILENO) != 0);
  } catch (const OutOfMemory& error) {
    fovea::detail::fail("train: ", error.what(), "; ", smaller_step(experiment, trainer.data()));
  }
  if (outcome.stopped_by != 0) {
    std::cout << "stopped at step " << outcome.step << "; go on with: fovea resume "
              << folder.path().string() << '\n';
    return 128 + outcome.stopped_by;
  }
  write_pages(experiment, trainer, folder);
  if (outcome.held_out) {
    std::cout << "held-out loss " << outcome.held_out->loss / outcome.held_out->scored
              << " nats, accuracy " << 100.0 * outcome.held_out->correct / outcome.held_out->scored
              << " %, after " << short_time(outcome.seconds) << " of training\n";
  }
  std::cout << "report: " << folder.report().string() << '\n';
  return 0;
}

// --device and --precision are so common that they need no section before them.
std::vector<config::Flag> flags_of(const std::vector<std::string>& arguments) {
  std::vector<config::Flag> flags = config::parse_flags(arguments);
  for (config::Flag& flag : flags) {
    if (flag.key == "device" || flag.key == "precision") flag.key = "train." + flag.key;
  }
  return flags;
}

}  // namespace

void load_experiment(Experiment& experiment, const RunFolder& folder) {
  config::load(experiment, folder.config());
}

void add_train(CLI::App& program, int& status) {
  CLI::App* train = program.add_subcommand(
      "train", "train what a config file describes; every key is also a flag: --optimizer.lr=3e-4");
  train->allow_extras();
  auto config = std::make_shared<std::string>();
  train->add_option("CONFIG", *config, "experiment file (TOML)")->required();
  train->footer([] {
    Experiment experiment;
    std::ostringstream out;
    out << "Keys, with their defaults:\n";
    config::print_help(experiment, out);
    return out.str();
  });
  train->callback([train, config, &status] {
    catch_signals();
    if (config->empty()) throw config::ConfigError("config: the name of the file is empty");
    Experiment experiment;
    config::load(experiment, *config, flags_of(train->remaining()));
    Trainer trainer(
        experiment);  // before the folder: whatever does not fit is said before anything is created
    const RunFolder folder = RunFolder::create(experiment.train.runs, experiment.name,
                                               config::resolved_toml(experiment));
    status = run(experiment, trainer, folder);
  });

  CLI::App* resume = program.add_subcommand(
      "resume", "go on with a run from its last checkpoint, as if it had never stopped");
  auto path = std::make_shared<std::string>();
  resume->add_option("RUN", *path, "run folder")->required();
  resume->callback([path, &status] {
    catch_signals();
    const RunFolder folder = RunFolder::open(*path);
    Experiment experiment;
    load_experiment(experiment, folder);
    std::vector<std::string> skipped;
    const Checkpoint checkpoint = folder.latest(skipped);
    for (const std::string& line : skipped) std::cerr << "fovea: passing over " << line << '\n';
    Trainer trainer(experiment);
    trainer.load(checkpoint);
    if (trainer.completed_steps() >= experiment.train.steps) {
      std::cout << folder.path().string() << ": all " << experiment.train.steps
                << " steps are done\n";
      if (!std::filesystem::exists(folder.report()))
        write_pages(experiment, trainer, folder);  // killed after its last step
      return;
    }
    std::cout << "from step " << trainer.completed_steps() << ": ";
    status = run(experiment, trainer, folder);
  });
}

}  // namespace fovea::train::cli
