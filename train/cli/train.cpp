// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <csignal>
#include <iostream>
#include <thread>

#include "core/io/file.h"
#include "distributed/launch.h"
#include "distributed/mpi.h"
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
            << experiment.train.batch;
  if (const int P = trainer.ranks().size(); P > 1) {
    const auto [data, ring, ulysses] = mesh_sizes(experiment.mesh, P);
    std::cout << ", " << P << " ranks";
    if (data < P)
      std::cout << " (data " << data << " x ring " << ring << " x ulysses " << ulysses << ")";
    std::cout << (experiment.train.zero == 1 ? ", ZeRO-1" : "");
    if (const std::string_view way = trainer.mesh().all().transport(); way == "nccl")
      std::cout << ", a card each (NCCL)";
  }
  std::cout << '\n' << folder.path().string() << std::endl;
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
void write_pages(const Experiment& experiment, Trainer& trainer, const RunFolder* folder) {
  const std::string text = trainer.sample_text(experiment.train.sample_tokens);
  if (folder == nullptr) return;
  if (!text.empty()) {
    replace_file(folder->sample(), text + "\n");
    std::cout << "\n" << text << "\n\n";
  }
  write_report({folder->path()}, folder->report());
}

// On every rank; folder: of rank 0, null on others. Returns the exit code.
int run(Experiment& experiment, Trainer& trainer, const RunFolder* folder) {
  if (folder != nullptr) describe(experiment, trainer, *folder);
  Outcome outcome;
  try {
    outcome = trainer.train(folder, stop_signal, std::cout, isatty(STDOUT_FILENO) != 0);
  } catch (const OutOfMemory& error) {
    fovea::detail::fail("train: ", error.what(), "; ", smaller_step(experiment, trainer.data()));
  }
  if (outcome.stopped_by != 0) {
    if (folder == nullptr) return 0;  // rank 0's code is the job's
    std::cout << "stopped at step " << outcome.step << "; go on with: fovea resume "
              << folder->path().string() << '\n';
    return 128 + outcome.stopped_by;
  }
  write_pages(experiment, trainer, folder);
  if (folder == nullptr) return 0;
  if (outcome.held_out) {
    std::cout << "held-out loss " << outcome.held_out->loss / outcome.held_out->scored
              << " nats, accuracy " << 100.0 * outcome.held_out->correct / outcome.held_out->scored
              << " %, after " << short_time(outcome.seconds) << " of training\n";
  }
  std::cout << "report: " << folder->report().string() << '\n';
  return 0;
}

using Job = std::function<void(Experiment&, const distributed::Communicator&)>;

// f on every rank, with the experiment that `load` fills. Started alone, as many ranks as asked for
// (0: as the experiment's mesh has) are threads; a wrong config is then told before there are any.
void run_on_ranks(int ranks, const std::function<void(Experiment&)>& load, const Job& f) {
  if (!distributed::started_by_mpi()) {
    Experiment experiment;
    load(experiment);
    if (ranks == 0) ranks = static_cast<int>(std::min<int64_t>(experiment.mesh.ranks(), 1 << 16));
    if (ranks == 1) return f(experiment, {});
  }
  try {
    distributed::run_job(ranks, [&](const distributed::Communicator& job) {
      Experiment experiment;
      load(experiment);
      f(experiment, job);
    });
  } catch (...) {
    // mpirun is ending the job, and this process within a second: another rank has said why.
    if (distributed::started_by_mpi() && stop_signal == SIGTERM)
      std::this_thread::sleep_for(std::chrono::seconds(2));
    throw;
  }
}

void add_ranks(CLI::App& verb, int& ranks) {
  verb.add_option("--ranks", ranks,
                  "ranks that divide each step, as threads; of mpirun's processes, their number "
                  "(0: what the mesh says)")
      ->check(whole_number(0, 4096));
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
  MeshOptions& mesh = experiment.mesh;  // of one rank
  mesh.data = mesh.window = 0;
  mesh.ring = mesh.ulysses = 1;
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
  auto ranks = std::make_shared<int>(0);
  add_ranks(*train, *ranks);
  train->callback([train, config, ranks, &status] {
    catch_signals();
    if (config->empty()) throw config::ConfigError("config: the name of the file is empty");
    const auto flags = flags_of(train->remaining());
    run_on_ranks(
        *ranks, [&](Experiment& experiment) { config::load(experiment, *config, flags); },
        [&](Experiment& experiment, const distributed::Communicator& job) {
          // Before the folder: whatever does not fit is said before anything is created.
          Trainer trainer(experiment, job);
          std::optional<RunFolder> folder;
          if (job.rank() == 0)
            folder = RunFolder::create(experiment.train.runs, experiment.name,
                                       config::resolved_toml(experiment));
          const int code = run(experiment, trainer, folder ? &*folder : nullptr);
          if (job.rank() == 0) status = code;
        });
  });

  CLI::App* resume = program.add_subcommand(
      "resume",
      "go on with a run from its last checkpoint, as if it had never stopped; the mesh may be "
      "another: --ranks=4 --mesh.ring=2");
  resume->allow_extras();
  auto path = std::make_shared<std::string>();
  resume->add_option("RUN", *path, "run folder")->required();
  auto resumed_ranks = std::make_shared<int>(0);
  add_ranks(*resume, *resumed_ranks);
  resume->callback([resume, path, ranks = resumed_ranks, &status] {
    catch_signals();
    std::vector<config::Flag> mesh = config::parse_flags(resume->remaining());
    for (const config::Flag& flag : mesh)
      if (!flag.key.starts_with("mesh."))
        throw config::ConfigError(concat("resume: --", flag.key,
                                         " not expected; a run goes on as its config says, only "
                                         "--mesh.* may change"));
    // Checkpoints fit any number of ranks.
    if (*ranks > 0 || distributed::started_by_mpi() || !mesh.empty())
      mesh.insert(mesh.begin(), {"mesh.data", "0"});
    const RunFolder opened = RunFolder::open(*path);
    const auto load = [&](Experiment& experiment) {
      config::load(experiment, opened.config(), mesh);
    };
    run_on_ranks(*ranks, load, [&](Experiment& experiment, const distributed::Communicator& job) {
      const RunFolder* folder = job.rank() == 0 ? &opened : nullptr;
      std::vector<std::string> skipped;
      const Checkpoint checkpoint = opened.latest(skipped);
      for (const std::string& line : skipped)
        if (folder != nullptr) std::cerr << "fovea: passing over " << line << '\n';
      Trainer trainer(experiment, job);
      trainer.load(checkpoint);
      if (trainer.completed_steps() >= experiment.train.steps) {
        const bool complete = std::filesystem::exists(opened.report());
        job.barrier();  // before rank 0 writes it
        if (folder != nullptr)
          std::cout << opened.path().string() << ": all " << experiment.train.steps
                    << " steps are done\n";
        if (!complete) write_pages(experiment, trainer, folder);  // killed after its last step
        return;
      }
      if (folder != nullptr) std::cout << "from step " << trainer.completed_steps() << ": ";
      const int code = run(experiment, trainer, folder);
      if (folder != nullptr) status = code;
    });
  });
}

}  // namespace fovea::train::cli
