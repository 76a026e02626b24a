// SPDX-License-Identifier: Apache-2.0
#include "train/plan/plan.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/allocator.h"
#include "core/parallel.h"
#include "core/testing/error_of.h"
#include "data/source.h"
#include "distributed/context_attention.h"
#include "distributed/launch.h"
#include "distributed/state.h"
#include "distributed/threads.h"
#include "train/trainer.h"

namespace fovea::train {
namespace {

using distributed::MeshSizes;
using distributed::Order;

using Flags = std::vector<config::Flag>;

Experiment experiment_of(const Flags& more) {
  Flags flags{{"data.kind", "copy"},
              {"data.context", "64"},
              {"data.vocab_size", "64"},
              {"model.context", "64"},
              {"model.layers", "2"},
              {"model.dim", "64"},
              {"model.attention.kind", "softmax_attention"},
              {"model.attention.heads", "4"},
              {"train.batch", "8"}};
  for (const config::Flag& flag : more) {
    std::erase_if(flags, [&](const config::Flag& f) { return f.key == flag.key; });
    flags.push_back(flag);
  }
  Experiment experiment;
  config::load_text(experiment, "", "test", flags);
  return experiment;
}

TEST(Plan, ParametersAreThoseOfTheModel) {
  for (const Flags& flags :
       {Flags{},
        Flags{{"model.mlp", "swiglu"}, {"model.norm", "rms"}, {"model.tied_head", "false"}},
        Flags{{"model.bias", "false"}, {"model.positions", "none"}, {"model.layers", "3"}},
        Flags{{"model.attention.kv_heads", "2"},
              {"model.attention.head_dim", "24"},
              {"model.attention.bias", "false"},
              {"model.attention.sink", "true"},
              {"model.attention.qk_norm", "rms"}},
        Flags{{"model.attention.kind", "long_context"}, {"model.attention.kv_heads", "1"}},
        Flags{{"model.positions", "sinusoidal"}, {"model.mlp_ratio", "2.5"}}}) {
    Experiment experiment = experiment_of(flags);
    const GptSizes z = gpt_sizes(experiment);
    const auto source = data::make_source(experiment.data, data::Split::train);
    EXPECT_EQ(z.parameters(),
              make_model(experiment, source->description())->module().parameter_count());
  }
}

// What a step holds at its peak, against the allocator.
TEST(Plan, MemoryIsWithinAFifthOfTheAllocators) {
  const ThreadShare one(1);
  for (const Flags& flags :
       {Flags{{"train.batch", "16"}},
        Flags{{"model.layers", "4"}, {"model.mlp", "swiglu"}, {"model.norm", "rms"}},
        Flags{{"train.precision", "bf16"}, {"train.batch", "32"}, {"train.ema", "0.9"}},
        Flags{{"model.recompute", "true"}, {"model.layers", "6"}, {"train.batch", "32"}},
        Flags{{"train.micro_batch", "8"}, {"train.batch", "32"}, {"optimizer.kind", "sgd"}},
        Flags{{"data.vocab_size", "4096"}, {"train.batch", "4"}}}) {
    Experiment experiment = experiment_of(flags);
    const int64_t before = memory_stats().live_bytes;
    Trainer trainer(experiment);
    trainer.step();
    reset_peak();
    trainer.step();
    const auto measured = static_cast<double>(memory_stats().peak_bytes - before);
    const Plan plan = make_plan(gpt_sizes(experiment), Machine{}, experiment, {});
    ASSERT_EQ(plan.rows.size(), 1U);
    const double planned = plan.rows[0].memory.total();
    std::string what;
    for (const config::Flag& f : flags) what += f.key + " = " + f.value + ' ';
    std::printf("%-70s planned %10.0f, measured %10.0f: %.3f\n", what.c_str(), planned, measured,
                planned / measured);
    EXPECT_NEAR(planned / measured, 1.0, 0.2) << what;
  }
}

Tensor random(const Shape& shape, Dtype dtype) {
  const Tensor x = Tensor::empty(shape);
  fill_normal(x, RngKey(1, "test", "x"));
  return x.to(dtype);
}

// The formulas of docs/distributed.md against the counts of what was sent.
TEST(Plan, BytesOfAttentionAreThoseThatTravel) {
  const int64_t B = 2, N = 64, H = 8, D = 6;
  for (const int64_t G : {8, 2}) {
    for (const MeshSizes& mesh : {MeshSizes{1, 4, 1}, {1, 1, 4}, {1, 2, 2}, {1, 2, 4}}) {
      for (const Travel travel : {Travel::ring, Travel::gather}) {
        for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
          GptSizes z;
          z.layers = 1, z.dim = H * D, z.heads = H, z.kv_heads = G, z.head_dim = D;
          z.tokens = N, z.compute = dtype;
          Division d;
          d.mesh = mesh;
          d.travel = mesh.ring > 1 ? travel : Travel::none;
          if (travel == Travel::ring && mesh.ring == 4 && G == 2) d.window = 2;
          const SentBytes sent = sent_bytes(z, d, B);
          distributed::run_job(mesh.ranks(), [&](const distributed::Communicator& world) {
            const distributed::Mesh ranks(world, mesh);
            distributed::ContextOptions options;
            if (travel == Travel::gather) options.exchange = distributed::Exchange::gather;
            options.window = d.window;
            const distributed::ContextAttention attend(ranks, Order::zigzag, N, options);
            const int64_t n = N / mesh.ranks();
            const auto part = [&](int64_t heads) {
              return Variable(random({B, heads, n, D}, dtype), true);
            };
            const Variable q = part(H), k = part(G), v = part(G);
            const auto call = [&] {
              return attend(softmax_rule(), q, k, v, Variable(), Tensor(),
                            attention::Mask().causal(), {});
            };
            call();  // the ranks agree on what they call
            const auto counts = [&] {
              return std::pair(ranks.ring().stats().total().bytes_sent,
                               ranks.ulysses().stats().total().bytes_sent);
            };
            const auto start = counts();
            const Variable out = call();
            const auto forward = counts();
            out.backward(random(out.shape(), dtype));
            const auto backward = counts();
            const auto expect = [&](int64_t bytes, double planned, const char* what) {
              EXPECT_EQ(static_cast<double>(bytes), planned)
                  << what << ", ring " << mesh.ring << " x ulysses " << mesh.ulysses << ", "
                  << name(travel) << ", " << G << " key heads, " << dtype;
            };
            expect(forward.first - start.first, sent.ring_forward, "ring forward");
            expect(forward.second - start.second, sent.ulysses_forward, "ulysses forward");
            expect(backward.first - forward.first, sent.ring_backward + sent.ring_sums,
                   "ring backward");
            expect(backward.second - forward.second, sent.ulysses_backward, "ulysses backward");
          });
        }
      }
    }
  }
}

TEST(Plan, BytesOfStatesAreThoseThatTravel) {
  const int64_t B = 2, N = 64, H = 4, D = 6;
  GptSizes z;
  z.layers = 1, z.dim = H * D, z.heads = z.kv_heads = H, z.head_dim = D, z.tokens = N;
  Division d;
  d.mesh = {1, 4, 1};
  d.travel = Travel::state;
  const SentBytes sent = sent_bytes(z, d, B);
  distributed::run_job(4, [&](const distributed::Communicator& world) {
    const auto part = [&](const Shape& shape) { return Variable(random(shape, Dtype::f32), true); };
    const Variable q = part({B, H, N / 4, D}), k = part({B, H, N / 4, D}),
                   v = part({B, H, N / 4, D}), g(Tensor::full({B, H, N / 4}, -0.1), true);
    const int64_t before = world.stats().total().bytes_sent;
    const Variable out = distributed::linear_attention(q, k, v, g, Variable(), Tensor(), world)[0];
    EXPECT_EQ(static_cast<double>(world.stats().total().bytes_sent - before), sent.ring_forward);
    const int64_t forward = world.stats().total().bytes_sent;
    out.backward(random(out.shape(), Dtype::f32));
    EXPECT_EQ(static_cast<double>(world.stats().total().bytes_sent - forward), sent.ring_backward);
  });
}

TEST(Plan, PairsAndBalanceAreTheMasks) {
  Experiment experiment = experiment_of({{"model.context", "4096"}, {"data.context", "4096"}});
  const GptSizes z = gpt_sizes(experiment, 64);
  EXPECT_EQ(allowed_pairs(z), 4096.0 * 4097.0 / 2);
  Division d;
  d.mesh = {1, 4, 1};
  d.travel = Travel::ring;
  d.order = Order::zigzag;
  EXPECT_NEAR(balance_of(z, d).stepwise, 1.0, 1e-3);
  d.order = Order::contiguous;
  EXPECT_NEAR(balance_of(z, d).total, 7.0 / 4, 1e-3);

  Experiment windowed = experiment_of(
      {{"model.context", "65536"}, {"data.context", "65536"}, {"model.attention.window", "1024"}});
  EXPECT_EQ(allowed_pairs(gpt_sizes(windowed, 64)), 65536.0 * 1025 - 1024.0 * 1025 / 2);
}

// One rank sends nothing, and each term falls with its rate.
TEST(Plan, TimesFollowRates) {
  Experiment experiment = experiment_of({{"train.batch", "8"}});
  const GptSizes z = gpt_sizes(experiment);
  const Plan one = make_plan(z, Machine{}, experiment, {});
  EXPECT_EQ(one.rows[0].time.efficiency(), 1.0);
  EXPECT_EQ(one.rows[0].time.ring + one.rows[0].time.ulysses + one.rows[0].time.gradients, 0.0);
  // The products are the model's: 6 a parameter of a matrix and row.
  EXPECT_NEAR(one.rows[0].time.products * Machine{}.products,
              6.0 * 8 * 64 * static_cast<double>(2 * z.block_matrices() + z.head_matrix()), 1.0);

  Machine fast;
  fast.bandwidth = fast.network = 1e30;
  fast.latency = 1e-30;
  const Plan free = make_plan(z, fast, experiment, {.devices = 4});
  EXPECT_GT(free.rows.size(), 4U);
  for (const PlanRow& row : free.rows)
    EXPECT_LT(row.time.ring + row.time.ulysses + row.time.gradients, 1e-12);
  Machine slow;
  slow.bandwidth = 1e6;
  for (const PlanRow& row : make_plan(z, slow, experiment, {.devices = 4}).rows)
    EXPECT_GT(row.time.gradients, 4.0 * static_cast<double>(z.parameters()) * 1e-6);
  // Nothing is hidden for less than nothing.
  for (const PlanRow& row : free.rows) {
    EXPECT_GE(row.time.overlap(), 0.0);
    EXPECT_LE(row.time.efficiency(), 1.0 + 1e-12);
  }
}

// With slow links between nodes of two, a ring of four visits its node first.
TEST(Plan, DoubleRingsHideASlowNetwork) {
  Experiment experiment = experiment_of({{"train.batch", "1"}});
  GptSizes z = gpt_sizes(experiment);
  Machine m;
  m.node = 2;
  m.network = m.bandwidth / 16;
  const Plan plan = make_plan(z, m, experiment, {.devices = 4});
  const auto exposed = [&](int64_t window) {
    for (const PlanRow& row : plan.rows)
      if (row.division.travel == Travel::ring && row.division.mesh.ring == 4 &&
          !row.division.zero && row.division.window == window)
        return row.time.ring;
    ADD_FAILURE() << "no ring with windows of " << window;
    return 0.0;
  };
  EXPECT_LT(exposed(2), exposed(0));
  for (const PlanRow& row : make_plan(z, Machine{}, experiment, {.devices = 4}).rows)
    EXPECT_EQ(row.division.window, 0);  // one node
}

// Windows leave zigzag unbalanced, a causal mask does not.
TEST(Plan, DispatchedChunksWhereZigzagIsUnbalanced) {
  const Flags flags{{"train.batch", "1"},
                    {"model.attention.kind", "long_context"},
                    {"model.attention.mask", "sliding_window"},
                    {"model.attention.window", "[16, 0]"}};
  Experiment windowed = experiment_of(flags), causal = experiment_of({{"train.batch", "1"}});
  std::map<Order, double> balance;
  for (const PlanRow& row : make_plan(gpt_sizes(windowed), {}, windowed, {.devices = 4}).rows)
    if (row.division.travel == Travel::gather && row.division.mesh.ring == 4)
      balance[row.division.order] = row.time.balance;
  EXPECT_GT(balance[Order::dispatched], 0.99);
  EXPECT_LT(balance[Order::dispatched], balance[Order::zigzag] - 0.02);
  for (const PlanRow& row : make_plan(gpt_sizes(causal), {}, causal, {.devices = 4}).rows)
    EXPECT_NE(row.division.order, Order::dispatched);
}

// What is planned trains, with the flags that say so.
TEST(Plan, FlagsAreTakenByTheTrainer) {
  Machine m;
  m.node = 2;
  const Flags base{{"train.batch", "4"},
                   {"model.dim", "16"},
                   {"model.attention.kind", "long_context"},
                   {"model.attention.heads", "4"},
                   {"model.attention.mask", "sliding_window"},
                   {"model.attention.window", "[16, 0]"}};
  Experiment experiment = experiment_of(base);
  std::set<std::string> tried;
  for (const PlanRow& row : make_plan(gpt_sizes(experiment), m, experiment, {.devices = 4}).rows) {
    Flags flags = base;
    std::string text;
    for (const config::Flag& flag : flags_of(row.division)) {
      flags.push_back(flag);
      text += flag.key + '=' + flag.value + ' ';
    }
    if (!tried.insert(text).second) continue;
    distributed::run_ranks(4, [&](const distributed::Communicator& job) {
      Experiment mine = experiment_of(flags);
      Trainer trainer(mine, job);
      EXPECT_TRUE(std::isfinite(trainer.step().loss)) << text;
    });
  }
  const auto any = [&](const char* part) {
    return std::any_of(tried.begin(), tried.end(), [&](const std::string& text) {
      return text.find(part) != std::string::npos;
    });
  };
  EXPECT_TRUE(any("mesh.window=2"));
  EXPECT_TRUE(any("mesh.order=dispatched"));
}

TEST(Plan, RowsAreSortedAndRefusalsNamed) {
  Experiment experiment = experiment_of({{"train.batch", "2"}});
  Machine machine;
  const Plan plan = make_plan(gpt_sizes(experiment), machine, experiment, {.devices = 8});
  for (size_t i = 1; i < plan.rows.size(); ++i)
    EXPECT_LE(plan.rows[i - 1].time.total(), plan.rows[i].time.total());
  for (const PlanRow& row : plan.rows) {
    EXPECT_EQ(row.division.ranks(), 8);
    EXPECT_LE(row.division.mesh.data, 2);
    EXPECT_LE(row.division.mesh.ulysses, 4);
  }
  const auto refused = [&](const char* why) {
    return std::find(plan.refused.begin(), plan.refused.end(), why) != plan.refused.end();
  };
  EXPECT_TRUE(refused("data 4: a batch of 2 samples"));
  EXPECT_TRUE(refused("ulysses 8: does not divide 4 heads"));
  EXPECT_NE(why_best(plan).find("best: data "), std::string::npos);
  EXPECT_EQ(to_json(plan)["rows"].size(), plan.rows.size());

  machine.memory = 1e5;
  const Plan none = make_plan(gpt_sizes(experiment), machine, experiment, {.devices = 8});
  for (const PlanRow& row : none.rows) EXPECT_FALSE(row.fits);
  EXPECT_NE(why_best(none).find("nothing fits"), std::string::npos);
}

TEST(Plan, PicturesHoldEveryStretch) {
  Experiment experiment = experiment_of({});
  Plan plan = make_plan(gpt_sizes(experiment), Machine{}, experiment, {.devices = 4});
  Division d;
  d.mesh = {1, 4, 1};
  d.travel = Travel::ring;
  d.order = Order::zigzag;
  const std::string svg = draw(plan, d);
  EXPECT_EQ(svg.rfind("</svg>\n"), svg.size() - 7);
  for (const char* stretch :
       {"tokens 0 to 7<", "tokens 56 to 63<", "tokens 24 to 39<", "step 3: keys of ring 1"})
    EXPECT_NE(svg.find(stretch), std::string::npos) << stretch;
  d.mesh = {1, 128, 1};
  EXPECT_NE(error_of([&] { draw(plan, d); }).find("at most 64"), std::string::npos);
}

TEST(Plan, MeasuresThisMachine) {
  Experiment experiment = experiment_of({});
  const GptSizes z = gpt_sizes(experiment);
  const Machine m = measure_machine(z, 512, kCpu, 2);
  EXPECT_TRUE(m.measured);
  for (const double rate : {m.products, m.attention, m.attention_backward, m.memory_bandwidth}) {
    EXPECT_GT(rate, 1e6);
    EXPECT_LT(rate, 1e15);
  }
  EXPECT_EQ(m.bandwidth, m.memory_bandwidth / 2);
  EXPECT_NE(error_of([&] {
              measure_machine(z, 512, Device{Device::Kind::interpreted, 0}, 1);
            }).find("means nothing"),
            std::string::npos);
}

TEST(Plan, QuantitiesAndWhatIsNone) {
  EXPECT_EQ(parse_quantity("--memory", "141GiB", "B"), 141.0 * 1024 * 1024 * 1024);
  EXPECT_EQ(parse_quantity("--memory", "1KiB", "B"), 1024.0);
  EXPECT_EQ(parse_quantity("--bandwidth", "450GB/s", "B/s"), 450e9);
  EXPECT_NEAR(parse_quantity("--latency", "5us", "s"), 5e-6, 1e-18);
  EXPECT_NEAR(parse_quantity("--latency", "2ms", "s"), 2e-3, 1e-15);
  EXPECT_EQ(parse_quantity("--flops", "600TFLOP/s", "FLOP/s"), 600e12);
  for (const char* bad : {"", "5", "-5us", "0us", "us", "5Gs", "5 us", "nanus", "5uss"})
    EXPECT_EQ(
        error_of([&] { parse_quantity("--latency", bad, "s"); }),
        concat("plan: --latency is \"", bad, "\"; expected a positive number of s, as in 5us"));
}

}  // namespace
}  // namespace fovea::train
