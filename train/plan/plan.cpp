// SPDX-License-Identifier: Apache-2.0
#include "train/plan/plan.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace fovea::train {
namespace {

// Of a row of the optimizer's state, a parameter.
void set_states(Division& d, const Experiment& experiment) {
  const OptimizerOptions& o = experiment.optimizer;
  d.state_bytes = o.kind == "adamw" || o.kind == "muon" ? 8
                  : o.kind == "lion"                    ? 4
                                                        : (o.momentum > 0.0 ? 4 : 0);
  d.state_bytes_matrices = o.kind == "muon" ? 4 : d.state_bytes;
  d.average_bytes = experiment.train.ema > 0.0 ? 4 : 0;
}

// Why a mesh is none; or nothing.
std::string refusal(const GptSizes& z, const distributed::MeshSizes& mesh, int64_t batch,
                    bool linear) {
  const int64_t U = mesh.ulysses;
  if (mesh.data > batch) return concat("data ", mesh.data, ": a batch of ", batch, " samples");
  if (z.heads % U != 0) return concat("ulysses ", U, ": does not divide ", z.heads, " heads");
  if (!linear && z.kv_heads % U != 0 && U % z.kv_heads != 0)
    return concat("ulysses ", U, ": neither divides nor is divided by ", z.kv_heads, " key heads");
  if (z.tokens < 2 * mesh.ring * U)
    return concat("ring ", mesh.ring, " x ulysses ", U, ": samples of ", z.tokens, " tokens");
  return "";
}

// How the ranks of a ring may see each other's keys.
struct Exchange {
  Travel travel;
  distributed::Order order = distributed::Order::contiguous;
  int64_t window = 0;
  distributed::Balance balance{1, 1};
};
std::vector<Exchange> exchanges(const GptSizes& z, const Machine& machine,
                                const distributed::MeshSizes& mesh, bool linear) {
  using distributed::Order;
  if (linear) return {{Travel::state}};
  if (mesh.ring == 1) return {{Travel::none}};
  const auto balanced = [&](Exchange exchange) {
    Division d;
    d.mesh = mesh;
    d.travel = exchange.travel;
    d.order = exchange.order;
    exchange.balance = balance_of(z, d);
    return exchange;
  };
  const Exchange ring = balanced({Travel::ring, Order::zigzag}),
                 gather{Travel::gather, Order::zigzag, 0, ring.balance};
  std::vector<Exchange> all{ring, gather};
  const int64_t w = machine.node / mesh.ulysses;  // groups of a node
  if (w > 1 && machine.node % mesh.ulysses == 0 && w < mesh.ring && mesh.ring % w == 0)
    all.push_back({Travel::ring, Order::zigzag, w, ring.balance});
  constexpr double kBetter = 0.02;
  if (ring.balance.total > 1 + kBetter && z.tokens >= 4 * mesh.ring * mesh.ulysses) {
    const Exchange dispatched = balanced({Travel::gather, Order::dispatched});
    if (dispatched.balance.total < ring.balance.total - kBetter) all.push_back(dispatched);
  }
  return all;
}

}  // namespace

std::string describe(const Division& d) {
  std::string text =
      concat("data ", d.mesh.data, " x ring ", d.mesh.ring, " x ulysses ", d.mesh.ulysses);
  if (d.travel != Travel::none) text += concat(", ", name(d.travel), ", ", name(d.order));
  if (d.window > 0) text += concat(", windows of ", d.window);
  if (d.ranks() > 1) text += concat(", zero ", d.zero ? 1 : 0);
  return text;
}

std::vector<config::Flag> flags_of(const Division& d) {
  if (d.travel == Travel::state) return {};
  std::vector<config::Flag> flags{{"mesh.data", std::to_string(d.mesh.data)},
                                  {"mesh.ring", std::to_string(d.mesh.ring)},
                                  {"mesh.ulysses", std::to_string(d.mesh.ulysses)}};
  if (d.travel == Travel::gather) flags.push_back({"mesh.strategy", "gather"});
  if (d.order == distributed::Order::dispatched) flags.push_back({"mesh.order", "dispatched"});
  if (d.window > 0) flags.push_back({"mesh.window", std::to_string(d.window)});
  flags.push_back({"train.zero", d.zero ? "1" : "0"});
  return flags;
}

Plan make_plan(const GptSizes& z, const Machine& machine, const Experiment& experiment,
               const PlanOptions& options) {
  FOVEA_CHECK(options.devices >= 1, "plan: expected at least one device, found ", options.devices);
  Plan plan{z, machine, {}, {}};
  const double pairs = allowed_pairs(z);
  const int64_t P = options.devices;
  for (int64_t shared = 1; shared <= P; ++shared) {
    for (int64_t U = 1; P % shared == 0 && U <= shared; ++U) {
      if (shared % U != 0) continue;
      const distributed::MeshSizes mesh{static_cast<int>(P / shared), static_cast<int>(shared / U),
                                        static_cast<int>(U)};
      if (const std::string why = refusal(z, mesh, experiment.train.batch, options.linear);
          !why.empty()) {
        if (std::find(plan.refused.begin(), plan.refused.end(), why) == plan.refused.end())
          plan.refused.push_back(why);
        continue;
      }
      for (const Exchange& exchange : exchanges(z, machine, mesh, options.linear)) {
        for (int zero = 0; zero <= (P > 1 ? 1 : 0); ++zero) {
          Division d;
          d.mesh = mesh;
          d.travel = exchange.travel;
          d.order = exchange.order;
          d.window = exchange.window;
          d.zero = zero == 1;
          d.batch = experiment.train.batch;
          d.micro_batch = experiment.train.micro_batch;
          set_states(d, experiment);
          PlanRow row{d, memory_cost(z, d), time_cost(z, d, machine, pairs, exchange.balance)};
          row.fits = row.memory.total() <= machine.memory;
          row.tokens_per_s = static_cast<double>(d.batch * z.tokens) / row.time.total();
          plan.rows.push_back(row);
        }
      }
    }
  }
  std::stable_sort(plan.rows.begin(), plan.rows.end(), [](const PlanRow& a, const PlanRow& b) {
    return a.fits != b.fits ? a.fits : a.time.total() < b.time.total();
  });
  return plan;
}

namespace {

struct Term {
  const char* name;
  double value;
};
std::vector<Term> terms(const TimeCost& t) {
  return {{"products", t.products}, {"attention", t.attention}, {"memory_bound", t.memory_bound},
          {"ring", t.ring},         {"ulysses", t.ulysses},     {"gradients", t.gradients}};
}
std::vector<Term> terms(const MemoryCost& m) {
  return {{"parameters", m.parameters}, {"gradients", m.gradients},     {"optimizer", m.optimizer},
          {"averages", m.averages},     {"activations", m.activations}, {"logits", m.logits},
          {"exchange", m.exchange}};
}

}  // namespace

std::string why_best(const Plan& plan) {
  if (plan.rows.empty()) return "no mesh of these devices divides this model";
  const PlanRow& best = plan.rows.front();
  if (!best.fits) {
    const PlanRow* least = &best;
    for (const PlanRow& row : plan.rows)
      if (row.memory.total() < least->memory.total()) least = &row;
    const std::vector<Term> all = terms(least->memory);
    const Term most = *std::max_element(
        all.begin(), all.end(), [](const Term& a, const Term& b) { return a.value < b.value; });
    const auto bytes = [](double x) { return short_bytes(static_cast<int64_t>(x)); };
    std::string text = concat("nothing fits: ", describe(least->division), " needs least, ",
                              bytes(least->memory.total()), " of ", bytes(plan.machine.memory),
                              ", of which ", most.name, " ", bytes(most.value));
    Division d = least->division;
    d.micro_batch = 1;
    GptSizes z = plan.sizes;
    if (d.pass() < least->division.pass() && memory_cost(z, d).total() <= plan.machine.memory)
      return text + "; train.micro_batch = 1 would fit";
    z.recompute = true;
    if (memory_cost(z, d).total() <= plan.machine.memory)
      return text + (d.pass() < least->division.pass()
                         ? "; model.recompute with train.micro_batch = 1 would fit"
                         : "; model.recompute would fit");
    return text;
  }
  std::string text = concat("best: ", describe(best.division));
  for (size_t i = 1; i < plan.rows.size(); ++i) {
    const PlanRow& next = plan.rows[i];
    const auto same = [&](const Division& a, const Division& b) {
      return a.mesh.data == b.mesh.data && a.mesh.ring == b.mesh.ring &&
             a.mesh.ulysses == b.mesh.ulysses;
    };
    if (!next.fits) break;
    if (same(next.division, best.division)) continue;
    const std::vector<Term> a = terms(best.time), b = terms(next.time);
    size_t most = 0;
    for (size_t t = 0; t < a.size(); ++t)
      if (b[t].value - a[t].value > b[most].value - a[most].value) most = t;
    if (next.time.total() < 1.001 * best.time.total()) {
      text += concat("; ", describe(next.division), " is as fast");
      break;
    }
    char more[64];
    std::snprintf(more, sizeof more, "%.3g ms (%.1f %%)",
                  1e3 * (next.time.total() - best.time.total()),
                  100.0 * (next.time.total() / best.time.total() - 1.0));
    text += concat("; ", describe(next.division), " takes ", more, " more, most of it for ",
                   b[most].name);
    break;
  }
  for (const PlanRow& row : plan.rows) {
    if (row.fits || row.time.total() >= best.time.total()) continue;
    text += concat("; ", describe(row.division), " would be faster but does not fit");
    break;
  }
  return text;
}

nlohmann::json to_json(const Plan& plan) {
  const Machine& m = plan.machine;
  const GptSizes& z = plan.sizes;
  nlohmann::json out{{"model",
                      {{"parameters", z.parameters()},
                       {"layers", z.layers},
                       {"dim", z.dim},
                       {"heads", z.heads},
                       {"kv_heads", z.kv_heads},
                       {"head_dim", z.head_dim},
                       {"vocab", z.vocab},
                       {"tokens", z.tokens}}},
                     {"machine",
                      {{"measured", m.measured},
                       {"memory_bytes", m.memory},
                       {"memory_bytes_per_s", m.memory_bandwidth},
                       {"product_flops", m.products},
                       {"attention_flops", m.attention},
                       {"attention_backward_flops", m.attention_backward},
                       {"node", m.node},
                       {"bytes_per_s", m.bandwidth},
                       {"network_bytes_per_s", m.network},
                       {"latency_s", m.latency}}},
                     {"why", why_best(plan)},
                     {"refused", plan.refused}};
  for (const PlanRow& row : plan.rows) {
    const Division& d = row.division;
    nlohmann::json seconds, bytes;
    for (const Term& term : terms(row.time)) seconds[term.name] = term.value;
    for (const Term& term : terms(row.memory)) bytes[term.name] = term.value;
    const SentBytes sent = sent_bytes(z, d, d.pass());
    out["rows"].push_back({{"data", d.mesh.data},
                           {"ring", d.mesh.ring},
                           {"ulysses", d.mesh.ulysses},
                           {"exchange", name(d.travel)},
                           {"order", distributed::name(d.order)},
                           {"window", d.window},
                           {"zero", d.zero ? 1 : 0},
                           {"fits", row.fits},
                           {"seconds", seconds},
                           {"step_s", row.time.total()},
                           {"hidden_s", row.time.hidden},
                           {"overlap", row.time.overlap()},
                           {"efficiency", row.time.efficiency()},
                           {"balance", row.time.balance},
                           {"tokens_per_s", row.tokens_per_s},
                           {"bytes", bytes},
                           {"memory_bytes", row.memory.total()},
                           {"sent_a_layer_and_pass",
                            {{"ring_forward", sent.ring_forward},
                             {"ring_backward", sent.ring_backward},
                             {"ring_sums", sent.ring_sums},
                             {"ulysses_forward", sent.ulysses_forward},
                             {"ulysses_backward", sent.ulysses_backward}}},
                           {"sent_gradients", gradient_bytes(z, d)}});
  }
  return out;
}

}  // namespace fovea::train
