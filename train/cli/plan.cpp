// SPDX-License-Identifier: Apache-2.0
#include "train/plan/plan.h"

#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/io/file.h"
#include "train/cli/cli.h"
#include "train/progress.h"

namespace fovea::train::cli {
namespace {

struct Arguments {
  std::string config, memory, bandwidth, latency, flops, attention, attention_backward,
      memory_bandwidth, network, mixer = "config", draw, json;
  int64_t devices = 1, node = 0, context = 0, batch = 0, vocab = 0;
  bool all = false;

  bool describes_device() const {
    for (const std::string* text : {&memory, &bandwidth, &latency, &flops, &attention,
                                    &attention_backward, &memory_bandwidth, &network})
      if (!text->empty()) return true;
    return node > 0;
  }
};

Machine described(const Arguments& a) {
  Machine m;
  const auto set = [](double& value, const char* option, const std::string& text,
                      const char* unit) {
    if (!text.empty()) value = parse_quantity(option, text, unit);
  };
  set(m.memory, "--memory", a.memory, "B");
  set(m.memory_bandwidth, "--memory-bandwidth", a.memory_bandwidth, "B/s");
  set(m.products, "--flops", a.flops, "FLOP/s");
  set(m.attention, "--attention-flops", a.attention, "FLOP/s");
  m.attention_backward = 0.8 * m.attention;
  set(m.attention_backward, "--attention-backward-flops", a.attention_backward, "FLOP/s");
  set(m.bandwidth, "--bandwidth", a.bandwidth, "B/s");
  set(m.network, "--network", a.network, "B/s");
  set(m.latency, "--latency", a.latency, "s");
  m.node = a.node;
  return m;
}

std::string bytes(double x) { return short_bytes(static_cast<int64_t>(x)); }

void print_machine(const Machine& m, int64_t devices) {
  std::cout << (m.measured ? "measured here" : "as told") << ", a device"
            << (m.measured && devices > 1 ? concat(" (1/", devices, " of this machine)") : "")
            << ": memory " << bytes(m.memory) << " at " << std::setprecision(4)
            << 1e-9 * m.memory_bandwidth << " GB/s; products " << 1e-12 * m.products
            << ", attention " << 1e-12 * m.attention << " forward and "
            << 1e-12 * m.attention_backward << " backward TFLOP/s";
  if (devices > 1) {
    std::cout << "; sends " << 1e-9 * m.bandwidth << " GB/s";
    if (m.node > 0)
      std::cout << " in a node of " << m.node << ", " << 1e-9 * m.network << " GB/s out of it";
    std::cout << ", latency " << 1e6 * m.latency << " us";
  }
  std::cout << '\n';
}

void print_rows(const Plan& plan, size_t most) {
  std::cout << std::right << std::setw(5) << "data" << std::setw(6) << "ring" << std::setw(9)
            << "ulysses" << std::setw(8) << "keys" << std::setw(12) << "order" << std::setw(6)
            << "zero" << std::setw(12) << "memory" << std::setw(11) << "products" << std::setw(11)
            << "attention" << std::setw(9) << "balance" << std::setw(9) << "memory" << std::setw(9)
            << "ring" << std::setw(9) << "ulysses" << std::setw(11) << "gradients" << std::setw(11)
            << "step ms" << std::setw(9) << "overlap" << std::setw(12) << "efficiency" << '\n';
  size_t shown = 0;
  for (const PlanRow& row : plan.rows) {
    if (shown++ == most) {
      std::cout << "  ... and " << plan.rows.size() - most << " more: --all\n";
      break;
    }
    const Division& d = row.division;
    const TimeCost& t = row.time;
    std::cout << std::fixed << std::setw(5) << d.mesh.data << std::setw(6) << d.mesh.ring
              << std::setw(9) << d.mesh.ulysses << std::setw(8)
              << (d.window > 0 ? concat("ring/", d.window) : std::string(name(d.travel)))
              << std::setw(12) << (d.mesh.ring > 1 ? name(d.order) : "-") << std::setw(6)
              << (d.zero ? 1 : 0) << std::setw(12) << bytes(row.memory.total())
              << std::setprecision(2) << std::setw(11) << 1e3 * t.products << std::setw(11)
              << 1e3 * t.attention << std::setprecision(3) << std::setw(9) << t.balance
              << std::setprecision(2) << std::setw(9) << 1e3 * t.memory_bound << std::setw(9)
              << 1e3 * t.ring << std::setw(9) << 1e3 * t.ulysses << std::setw(11)
              << 1e3 * t.gradients << std::setw(11) << 1e3 * t.total() << std::setprecision(0)
              << std::setw(7) << 100 * t.overlap() << " %" << std::setw(10) << 100 * t.efficiency()
              << " %" << (row.fits ? "" : "   does not fit") << '\n';
    std::cout.unsetf(std::ios::floatfield);
  }
}

void print_best(const Plan& plan) {
  std::cout << '\n' << why_best(plan) << '\n';
  if (plan.rows.empty()) return;
  const PlanRow& best = plan.rows.front();
  const MemoryCost& m = best.memory;
  std::cout << "memory of a rank at the peak of a step: parameters " << bytes(m.parameters)
            << ", gradients " << bytes(m.gradients) << ", optimizer " << bytes(m.optimizer);
  if (m.averages > 0) std::cout << ", averages " << bytes(m.averages);
  std::cout << ", activations " << bytes(m.activations) << ", logits " << bytes(m.logits);
  if (best.division.ranks() > 1) std::cout << ", exchange " << bytes(m.exchange);
  const SentBytes sent = sent_bytes(plan.sizes, best.division, best.division.pass());
  std::cout << '\n';
  if (best.division.mesh.ring * best.division.mesh.ulysses > 1)
    std::cout << "sent by a rank for a layer: ring " << bytes(sent.ring_forward) << " forward, "
              << bytes(sent.ring_backward + sent.ring_sums) << " backward; all-to-all "
              << bytes(sent.ulysses_forward) << " each way\n";
  if (best.division.ranks() > 1)
    std::cout << "sent by a rank for gradients: "
              << bytes(gradient_bytes(plan.sizes, best.division)) << " a step\n";
  std::cout << short_count(best.tokens_per_s) << " tokens/s\n";
  const Division& d = best.division;
  const std::vector<config::Flag> flags = flags_of(d);
  if (flags.empty() || d.mesh.ring * d.mesh.ulysses == 1) return;
  std::cout << "fovea train CONFIG --ranks=" << d.ranks();
  for (const config::Flag& flag : flags)
    if (flag.key != "mesh.data") std::cout << " --" << flag.key << '=' << flag.value;
  std::cout << '\n';
}

void run(const Arguments& a, const std::vector<std::string>& extras) {
  std::vector<config::Flag> flags = config::parse_flags(extras);
  Experiment experiment;
  if (a.context > 0) {
    flags.push_back({"model.context", std::to_string(a.context)});
    flags.push_back({"data.context", std::to_string(a.context)});
  }
  if (a.batch > 0) flags.push_back({"train.batch", std::to_string(a.batch)});
  config::load(experiment, a.config, flags);
  const GptSizes sizes =
      gpt_sizes(experiment, a.vocab > 0 ? std::optional<int64_t>(a.vocab) : std::nullopt);
  const TrainOptions& train = experiment.train;
  const int64_t samples = train.micro_batch > 0 ? train.micro_batch : train.batch;
  const Machine machine =
      a.describes_device()
          ? described(a)
          : measure_machine(sizes, samples * sizes.tokens, parse_device(train.device), a.devices);
  const Plan plan = make_plan(sizes, machine, experiment, {a.devices, a.mixer == "linear"});
  FOVEA_CHECK(a.draw.empty() || !plan.rows.empty(), "plan: there is no mesh to draw");
  std::cout << "gpt with " << sizes.parameters() << " parameters, " << sizes.layers << " x "
            << sizes.dim << ", " << sizes.heads << " heads (" << sizes.kv_heads << " of keys) of "
            << sizes.head_dim << ", vocabulary " << sizes.vocab << ", " << train.batch
            << " samples of " << sizes.tokens << " tokens a step, " << train.precision
            << (sizes.recompute ? ", recompute" : "") << '\n';
  if (a.mixer == "linear")
    std::cout << "attention stands for a linear layer of states " << sizes.head_dim << " x "
              << sizes.head_dim << '\n';
  print_machine(machine, a.devices);
  for (const std::string& why : plan.refused) std::cout << "not " << why << '\n';
  print_rows(plan, a.all ? plan.rows.size() : 20);
  print_best(plan);
  if (!a.json.empty()) replace_file(a.json, to_json(plan).dump(2) + "\n");
  if (!a.draw.empty()) replace_file(a.draw, draw(plan, plan.rows.front().division));
}

}  // namespace

void add_plan(CLI::App& program, int&) {
  CLI::App* plan = program.add_subcommand(
      "plan",
      "memory and time of a training step before it runs, for every way to divide it over devices; "
      "without options of the device this machine is measured");
  plan->allow_extras();
  static Arguments a;
  plan->add_option("CONFIG", a.config, "experiment file (TOML); its keys are flags")->required();
  plan->add_option("--devices", a.devices, "how many")
      ->capture_default_str()
      ->check(whole_number(1, 1 << 16));
  plan->add_option("--memory", a.memory, "of a device, as in 141GiB (else 141GB)");
  plan->add_option("--memory-bandwidth", a.memory_bandwidth, "as in 4.8TB/s");
  plan->add_option("--flops", a.flops, "rate of products, as in 600TFLOP/s");
  plan->add_option("--attention-flops", a.attention, "of attention forward (else 500TFLOP/s)");
  plan->add_option("--attention-backward-flops", a.attention_backward,
                   "and backward (else 0.8 of forward)");
  plan->add_option("--bandwidth", a.bandwidth, "that a device sends, as in 450GB/s");
  plan->add_option("--node", a.node, "devices of a node; 0: all are in one")
      ->check(whole_number(0, 1 << 16));
  plan->add_option("--network", a.network, "that a device sends out of its node (else 50GB/s)");
  plan->add_option("--latency", a.latency, "of a message, as in 5us");
  plan->add_option("--context", a.context, "tokens of a sample, instead of the config's")
      ->check(whole_number(1, 1 << 24));
  plan->add_option("--batch", a.batch, "samples of a step, instead of the config's")
      ->check(whole_number(1, 1 << 24));
  plan->add_option("--vocab", a.vocab, "tokens of the vocabulary; the data need not be there then")
      ->check(whole_number(1, 1 << 24));
  plan->add_option("--mixer", a.mixer, "config, or linear: attention stands for a linear layer")
      ->capture_default_str()
      ->check(CLI::IsMember({"config", "linear"}));
  plan->add_flag("--all", a.all, "every mesh, not the first 20");
  plan->add_option("--draw", a.draw, "write a picture (SVG) of who holds which tokens");
  plan->add_option("--json", a.json, "also write the plan to this file");
  plan->callback([plan] { run(a, plan->remaining()); });
}

}  // namespace fovea::train::cli
