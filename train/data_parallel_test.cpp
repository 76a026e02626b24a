// SPDX-License-Identifier: Apache-2.0
// Several ranks against one: the same losses, norms and weights within rounding, the same bits
// where sums are the same; checkpoints on other numbers of ranks; ranks that fail.
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <sstream>
#include <thread>

#include "core/io/hdf5.h"
#include "core/testing/devices.h"
#include "train/ranks_test_util.h"

namespace fovea::train {
namespace {

Flags joined(Flags flags, const Flags& more) {
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

// With zero = 1 matrices stay whole, each on one rank.
const Flags kMuon{{"optimizer.kind", "muon"}, {"optimizer.momentum", "0.95"}};

class TrainOnRanks : public testing::TestWithParam<int> {};

TEST_P(TrainOnRanks, LossesAreThoseOfOneRank) {
  const int P = GetParam();
  for (const Flags& flags : {Flags{}, kMuon}) {
    const Trained one = train(1, flags);
    for (const char* zero : {"0", "1"}) {
      const Trained many = train(P, joined(flags, {{"train.zero", zero}}));
      expect_near(many.losses, one.losses, kRounding);
      expect_near(many.norms, one.norms, kRounding);
      EXPECT_NEAR(many.held_out, one.held_out, kRounding);
      ASSERT_EQ(many.state.size(), one.state.size());
      for (size_t i = 0; i < one.state.size(); ++i)
        EXPECT_EQ(many.state[i].first, one.state[i].first);
    }
  }
}

// Shares of 5, 5, 4 ... samples, of other micro-batches, or fewer samples than all score.
TEST_P(TrainOnRanks, SharesNeedNotBeEqual) {
  const Flags ragged{{"train.batch", "14"}, {"train.micro_batch", "0"}};
  expect_near(train(GetParam(), ragged).losses, train(1, ragged).losses, kRounding);
}

// Nothing but where sums are kept: the same bits.
TEST_P(TrainOnRanks, ShardsAndOverlapChangeNoBit) {
  const int P = GetParam();
  for (const Flags& kind : {Flags{}, kMuon}) {
    const Flags flags = joined(kind, {{"train.clip", "0"}});
    const Trained plain = train(P, joined(flags, {{"mesh.overlap", "false"}}));
    for (const Flags& more : {Flags{{"train.zero", "1"}}, Flags{},
                              Flags{{"mesh.bucket_bytes", "8388608"}, {"train.zero", "1"}}}) {
      const Trained other = train(P, joined(flags, more));
      EXPECT_EQ(other.losses, plain.losses);
      EXPECT_EQ(other.state, plain.state);
      EXPECT_EQ(other.held_out, plain.held_out);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Of, TrainOnRanks, testing::Values(2, 3, 4),
                         testing::PrintToStringParamName());

TEST(TrainOnRanks, EveryOptimizerTrainsAlike) {
  for (const char* kind : {"sgd", "lion", "muon"}) {
    const Flags flags{{"optimizer.kind", kind}, {"model.dropout", "0"}, {"optimizer.lr", "1e-3"}};
    const Trained one = train(1, flags, 6);
    for (const char* zero : {"0", "1"})
      expect_near(train(3, joined(flags, {{"train.zero", zero}}), 6).losses, one.losses, kRounding);
  }
}

// One block: a rank has none of its four matrices, and little of the rest.
TEST(TrainOnRanks, MoreRanksThanMatrices) {
  const Flags flags = joined(kMuon, {{"model.layers", "1"}, {"train.zero", "1"}});
  const Trained one = train(1, flags, 6), six = train(6, flags, 6);
  expect_near(six.losses, one.losses, kRounding);
  const Trained resumed = train(5, flags, 6, &six.checkpoint);
  EXPECT_EQ(resumed.state, six.state);
}

// Over all ranks, what one would hold: the moments of muon's matrices on their owners alone.
TEST(TrainOnRanks, OptimizerStateIsHeldOnce) {
  const auto held = [](int ranks, const Flags& flags) {
    int64_t bytes = 0;
    run_ranks(ranks, [&](const Communicator& job) {
      Experiment e;
      load(e, flags);
      const Trainer trainer(e, job);
      job.barrier();
      if (job.rank() == 0) {
        for (const MemoryUse& use : memory_use())
          bytes += use.name == "optimizer state" || use.name == "averaged weights" ? use.bytes : 0;
      }
      job.barrier();
    });
    return bytes;
  };
  for (const Flags& flags : {Flags{}, kMuon}) {
    const int64_t one = held(1, flags);
    EXPECT_GT(one, 0);
    EXPECT_EQ(held(4, flags), 4 * one);
    EXPECT_EQ(held(4, joined(flags, {{"train.zero", "1"}})), one);
  }
}

// Documents of which few positions are scored: 0, 1, .. 6 of 24, so that ranks differ and some
// have nothing to learn from.
TEST(TrainOnRanks, RanksWithFewTargetsOrNoneWeighWhatTheyHave) {
  const std::filesystem::path path = std::filesystem::temp_directory_path() /
                                     ("fovea_few_targets." + std::to_string(getpid()) + ".h5");
  constexpr int64_t kRows = 40, kTokens = 24;
  std::vector<int64_t> inputs, targets;
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t i = 0; i < kTokens; ++i) {
      inputs.push_back((row * 5 + i * i) % 17);
      targets.push_back(i < row % 7 ? (row + 3 * i) % 17 : data::kIgnore);
    }
  }
  Hdf5Writer file;
  for (const std::string split : {"train", "val"}) {
    file.write(split + "/inputs", Tensor::from(inputs, {kRows, kTokens}));
    file.write(split + "/targets", Tensor::from(targets, {kRows, kTokens}));
  }
  file.save(path);
  const Flags data{{"data.kind", "hdf5"}, {"data.path", path.string()}, {"data.vocab_size", "17"}};
  for (const Flags& more :
       {Flags{{"train.micro_batch", "1"}},
        Flags{{"train.batch", "4"}, {"train.micro_batch", "0"}, {"model.recompute", "true"}}}) {
    Flags flags = data;
    flags.insert(flags.end(), more.begin(), more.end());
    const Trained one = train(1, flags);
    for (const auto& [ranks, ring] : {std::pair{3, "1"}, {4, "1"}, {4, "2"}}) {
      for (const char* zero : {"0", "1"}) {
        Flags many = flags;
        many.push_back({"train.zero", zero});
        many.push_back({"mesh.ring", ring});
        const Trained found = train(ranks, many);
        expect_near(found.losses, one.losses, kRounding);
        expect_near(found.norms, one.norms, kRounding);
      }
    }
  }
  std::filesystem::remove(path);
}

class TrainRanksOn : public OnDevices {};

// Gradients go by the group of the device, numbers by the job: of `cuda`, whose one card the ranks
// share, all through the host.
TEST_P(TrainRanksOn, LossesAreThoseOfOneRank) {
  const Flags flags{{"train.device", std::string(name(device().kind))},
                    {"train.batch", "4"},
                    {"model.layers", "1"},
                    {"model.dim", "8"},
                    {"data.val_samples", "2"}};
  const Trained one = train(1, flags, 3);
  for (const char* zero : {"0", "1"}) {
    const Flags many = joined(flags, {{"train.zero", zero}});
    const Trained two = train(2, many, 3);
    expect_near(two.losses, one.losses, kRounding);
    expect_near(two.norms, one.norms, kRounding);
    EXPECT_NEAR(two.held_out, one.held_out, kRounding);
    const Trained again = train(2, many, 3);
    EXPECT_EQ(again.losses, two.losses);
    EXPECT_EQ(again.state, two.state);
  }
  const Flags muon = joined(joined(flags, kMuon), {{"train.clip", "0"}});
  const Trained plain = train(2, muon, 2), owned = train(2, joined(muon, {{"train.zero", "1"}}), 2);
  EXPECT_EQ(owned.losses, plain.losses);
  EXPECT_EQ(owned.state, plain.state);
}

// One sequence over a ring and over heads, whose exchanges and sums of gradients are under way
// together.
TEST_P(TrainRanksOn, SequencesOverRanksTrainAsOneRankDoes) {
  const Flags flags{{"train.device", std::string(name(device().kind))},
                    {"train.batch", "2"},
                    {"train.micro_batch", "0"},
                    {"model.layers", "1"},
                    {"model.dim", "8"},
                    {"mesh.bucket_bytes", "512"},
                    {"data.val_samples", "1"}};
  const Trained one = train(1, flags, 2);
  Flags many = flags;
  many.insert(many.end(), {{"mesh.ring", "2"}, {"mesh.ulysses", "2"}, {"train.zero", "1"}});
  const Trained four = train(4, many, 2);
  expect_near(four.losses, one.losses, kRounding);
  expect_near(four.norms, one.norms, kRounding);
  EXPECT_NEAR(four.held_out, one.held_out, kRounding);
}

TEST_P(TrainRanksOn, BytesAreCountedWhereTheyGo) {
  run_ranks(2, [&, device = device()](const Communicator& job) {
    Experiment e;
    load(e, {{"train.device", std::string(name(device.kind))},
             {"train.batch", "2"},
             {"train.micro_batch", "0"},
             {"model.layers", "1"},
             {"model.dim", "8"}});
    Trainer trainer(e, job);
    const distributed::Communicator& group = trainer.mesh().all();
    if (device.kind == Device::Kind::interpreted) {
      EXPECT_EQ(group.home(), device);
    }
    for (const Communicator& comm : {job, group}) comm.reset_stats();
    trainer.step();
    EXPECT_EQ(group.stats().total().bytes_sent, trainer.data_parallel()->elements() * 4);
    EXPECT_GT(job.stats().total().bytes_sent, 0);
    EXPECT_EQ(job.stats()[distributed::Operation::all_reduce].calls, 2);
  });
}
FOVEA_ON_DEVICES(TrainRanksOn);

// Only the last micro-batch communicates: bytes of a step are those of the formula.
TEST(TrainOnRanks, BytesOfAStepAreThoseOfTheFormula) {
  const Flags zero{{"train.zero", "1"}};
  for (const Flags& flags : {Flags{}, zero, joined(kMuon, zero)})
    run_ranks(3, [&](const Communicator& job) {
      Experiment e;
      load(e, flags);
      Trainer trainer(e, job);
      const distributed::DataParallel& parallel = *trainer.data_parallel();
      EXPECT_GE(parallel.buckets(), 3u);
      for (int step = 0; step < 3; ++step) {
        for (const Communicator& group : {trainer.ranks(), trainer.mesh().all()})
          group.reset_stats();
        trainer.step();
        EXPECT_EQ(parallel.early_buckets(), step > 0 ? parallel.buckets() : 0u);
        const int64_t P = 3;
        // All but the rank's own part, then that to all.
        const auto both = [&](int64_t n, int64_t own) { return n - own + (P - 1) * own; };
        const auto numbers = [&](int64_t n) {  // of 8 bytes
          return 8 * both(n, n / P + (job.rank() < n % P ? 1 : 0));
        };
        const auto K = static_cast<int64_t>(trainer.model().module().parameters().size());
        EXPECT_EQ(trainer.mesh().all().stats().total().bytes_sent,
                  4 * both(parallel.elements(), parallel.own_elements()));
        EXPECT_EQ(trainer.ranks().stats().total().bytes_sent, numbers(3) + numbers(2 + K));
      }
    });
}

// ---- checkpoints --------------------------------------------------------------------------------

TEST(TrainOnRanks, ACheckpointOfFourRanksGoesOnOnAnyNumber) {
  for (const Flags& kind : {Flags{}, kMuon})
    for (const char* zero : {"0", "1"}) {
      const Flags flags = joined(kind, {{"train.zero", zero}});
      const Trained half = train(4, flags, 10), whole = train(4, flags, 20);
      // On four: the same bits.
      const Trained resumed = train(4, flags, 20, &half.checkpoint);
      EXPECT_EQ(resumed.losses, std::vector<double>(whole.losses.begin() + 10, whole.losses.end()));
      EXPECT_EQ(resumed.state, whole.state);
      for (const int ranks : {1, 2, 3}) {
        for (const char* other : {"0", "1"}) {
          // The state arrives bit for bit, whatever holds it then.
          const Trained same =
              train(ranks, joined(kind, {{"train.zero", other}}), 10, &half.checkpoint);
          EXPECT_EQ(same.state, half.state) << ranks;
        }
        const Trained fewer = train(ranks, flags, 20, &half.checkpoint);
        expect_near(fewer.losses, resumed.losses, kRounding);
      }
    }
}

// With ZeRO-1 nobody has more of the state than its part, on disk as in memory.
TEST(TrainOnRanks, EveryRankWritesItsPart) {
  const std::filesystem::path runs =
      std::filesystem::temp_directory_path() / ("fovea_parts_test." + std::to_string(getpid()));
  const RunFolder folder = RunFolder::create(runs, "ranks", "name = \"ranks\"\n");
  const Flags flags{{"train.zero", "1"},
                    {"train.save_every", "5"},
                    {"train.keep_last", "1"},
                    {"train.eval_every", "5"}};
  const std::atomic<int> stop{0};
  run_ranks(4, [&](const Communicator& job) {
    Experiment e;
    load(e, flags);
    Trainer trainer(e, job);
    std::ostringstream out;
    trainer.train(job.rank() == 0 ? &folder : nullptr, stop, out, false);
    int64_t n = 0, state = 0;
    for (const nn::NamedParameter& p : trainer.model().module().parameters())
      n += p.variable.value().numel();
    for (const Checkpoint::Part& part : trainer.save().parts) state += part.n;
    EXPECT_LE(state, 3 * n / 4 + 3 * 32 * 40);  // m, v and averages; up to a bucket's padding
  });
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path() / "checkpoints"))
    files += entry.path().extension() == ".h5" ? 1 : 0;
  EXPECT_EQ(files, 10u);  // the last and the best, each with its parts
  const Trained whole = train(4, flags);
  const Checkpoint last = folder.load("last");
  EXPECT_EQ(last.integer("step"), 20);
  for (const int ranks : {4, 3, 1}) EXPECT_EQ(train(ranks, flags, 20, &last).state, whole.state);
  std::filesystem::remove_all(runs);
}

// ---- refusals and failures ----------------------------------------------------------------------

TEST(TrainOnRanks, WhatDoesNotFitIsRefusedInOneLine) {
  const auto error = [](int ranks, const Flags& flags, const Flags& last = {}) {
    return error_of([&] {
      run_ranks(ranks, [&](const Communicator& job) {
        Experiment e;
        Flags mine = flags;
        if (job.rank() == ranks - 1) mine.insert(mine.end(), last.begin(), last.end());
        load(e, mine);
        Trainer trainer(e, job);
      });
    });
  };
  const auto expect = [](const std::string& found, const std::string& part) {
    EXPECT_NE(found.find(part), std::string::npos) << found;
  };
  expect(error(3, {}, {{"optimizer.lr", "0.1"}}),
         "config: rank 2 differs from rank 0: optimizer.lr = 0.1, not optimizer.lr = 0.003; start");
  expect(error(3, {{"mesh.data", "4"}}),
         "data 4 x ring 1 x ulysses 1 is 4 ranks, but the job has 3");
  expect(error(4, {{"train.batch", "2"}}), "a batch of 2 leaves some of 4 ranks without a sample");
  expect(error(2, {{"train.graph", "on"}}), "steps of several ranks cannot be graphs");
}

// Rank 2 of 4 fails after step 3; the others train on, and have saved step 2 with its help.
TEST(TrainOnRanks, ARankThatFailsOrHangsEndsTheJobAndTheRestGoOn) {
  const std::filesystem::path runs =
      std::filesystem::temp_directory_path() / ("fovea_ranks_test." + std::to_string(getpid()));
  const Flags flags{{"train.save_every", "2"}, {"train.eval_every", "0"}};
  const Trained whole = train(4, flags);
  for (const bool hangs : {false, true}) {
    const RunFolder folder = RunFolder::create(runs, "ranks", "name = \"ranks\"\n");
    const std::atomic<int> stop{0};
    const std::string error = error_of([&] {
      run_ranks(4, [&](const Communicator& job) {
        if (hangs) job.set_time_limit(1.0);
        Experiment e;
        load(e, flags);
        Trainer trainer(e, job);
        std::ostringstream out;
        if (job.rank() != 2) {
          trainer.train(job.rank() == 0 ? &folder : nullptr, stop, out, false);
          return;
        }
        trainer.step();
        trainer.step();
        trainer.save();
        trainer.step();
        if (!hangs) throw Error("the disk is gone");
        std::this_thread::sleep_for(std::chrono::seconds(2));
      });
    });
    EXPECT_EQ(error.find("all_reduce") != std::string::npos, hangs) << error;
    EXPECT_NE(error.find(hangs ? "waited 1 s for rank 2" : "rank 2 of 4: the disk is gone"),
              std::string::npos)
        << error;
    std::vector<std::string> skipped;
    const Checkpoint kept = folder.latest(skipped);
    EXPECT_EQ(kept.integer("step"), 2);
    expect_near(train(3, flags, 20, &kept).losses,
                std::vector<double>(whole.losses.begin() + 2, whole.losses.end()), kRounding);
  }
  std::filesystem::remove_all(runs);
}

TEST(TrainOnRanks, WeightsThatWentAstrayAreNotSaved) {
  const std::string error = error_of([] {
    run_ranks(3, [](const Communicator& job) {
      Experiment e;
      load(e, {});
      Trainer trainer(e, job);
      trainer.step();
      trainer.save();
      if (job.rank() == 1) {
        const Variable gain = trainer.model().module().parameters().back().variable;
        gain.value().view({gain.value().numel()}).slice(0, 0, 1).fill_(0.125);
      }
      trainer.save();
    });
  });
  EXPECT_NE(error.find("weights: rank 1 differs from rank 0"), std::string::npos) << error;
}

// A signal that reaches one rank stops all at one step.
TEST(TrainOnRanks, ASignalStopsAllAtOneStep) {
  const std::filesystem::path runs =
      std::filesystem::temp_directory_path() / ("fovea_signal_test." + std::to_string(getpid()));
  const RunFolder folder = RunFolder::create(runs, "ranks", "name = \"ranks\"\n");
  run_ranks(3, [&](const Communicator& job) {
    Experiment e;
    load(e, {{"train.save_every", "0"}, {"train.eval_every", "0"}});
    Trainer trainer(e, job);
    std::ostringstream out;
    const std::atomic<int> stop{job.rank() == 1 ? SIGTERM : 0};
    const Outcome outcome = trainer.train(job.rank() == 0 ? &folder : nullptr, stop, out, false);
    EXPECT_EQ(outcome.stopped_by, SIGTERM);
    EXPECT_EQ(outcome.step, 1);
    EXPECT_EQ(out.str().empty(), job.rank() != 0);
  });
  EXPECT_EQ(folder.checkpoints().size(), 1u);
  std::filesystem::remove_all(runs);
}

}  // namespace
}  // namespace fovea::train
