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

class TrainOnRanks : public testing::TestWithParam<int> {};

TEST_P(TrainOnRanks, LossesAreThoseOfOneRank) {
  const int P = GetParam();
  const Trained one = train(1, {});
  for (const char* zero : {"0", "1"}) {
    const Trained many = train(P, {{"train.zero", zero}});
    expect_near(many.losses, one.losses, kRounding);
    expect_near(many.norms, one.norms, kRounding);
    EXPECT_NEAR(many.held_out, one.held_out, kRounding);
    ASSERT_EQ(many.state.size(), one.state.size());
    for (size_t i = 0; i < one.state.size(); ++i)
      EXPECT_EQ(many.state[i].first, one.state[i].first);
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
  const Trained plain = train(P, {{"train.clip", "0"}, {"mesh.overlap", "false"}});
  for (const Flags& flags :
       {Flags{{"train.clip", "0"}, {"train.zero", "1"}}, Flags{{"train.clip", "0"}},
        Flags{{"train.clip", "0"}, {"mesh.bucket_bytes", "8388608"}}}) {
    const Trained other = train(P, flags);
    EXPECT_EQ(other.losses, plain.losses);
    EXPECT_EQ(other.state, plain.state);
    EXPECT_EQ(other.held_out, plain.held_out);
  }
}

INSTANTIATE_TEST_SUITE_P(Of, TrainOnRanks, testing::Values(2, 3, 4),
                         testing::PrintToStringParamName());

TEST(TrainOnRanks, EveryOptimizerTrainsAlike) {
  for (const char* kind : {"sgd", "lion", "muon"}) {
    const Flags flags{{"optimizer.kind", kind}, {"model.dropout", "0"}, {"optimizer.lr", "1e-3"}};
    const Trained one = train(1, flags, 6);
    expect_near(train(3, flags, 6).losses, one.losses, kRounding);
    if (std::string(kind) == "muon") continue;
    Flags zero = flags;
    zero.push_back({"train.zero", "1"});
    expect_near(train(3, zero, 6).losses, one.losses, kRounding);
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
    Flags many = flags;
    many.push_back({"train.zero", zero});
    const Trained two = train(2, many, 3);
    expect_near(two.losses, one.losses, kRounding);
    expect_near(two.norms, one.norms, kRounding);
    EXPECT_NEAR(two.held_out, one.held_out, kRounding);
    const Trained again = train(2, many, 3);
    EXPECT_EQ(again.losses, two.losses);
    EXPECT_EQ(again.state, two.state);
  }
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
  for (const char* zero : {"0", "1"})
    run_ranks(3, [&](const Communicator& job) {
      Experiment e;
      load(e, {{"train.zero", zero}});
      Trainer trainer(e, job);
      const distributed::DataParallel& parallel = *trainer.data_parallel();
      EXPECT_GE(parallel.buckets(), 3u);
      for (int step = 0; step < 3; ++step) {
        for (const Communicator& group : {trainer.ranks(), trainer.mesh().all()})
          group.reset_stats();
        trainer.step();
        EXPECT_EQ(parallel.early_buckets(), step > 0 ? parallel.buckets() : 0u);
        const int64_t P = 3;
        // An all_reduce of n numbers of 8 bytes: all but its own part, then that to all.
        const auto numbers = [&](int64_t n) {
          const int64_t own = n / P + (job.rank() < n % P ? 1 : 0);
          return 8 * (n - own + (P - 1) * own);
        };
        const auto K = static_cast<int64_t>(trainer.model().module().parameters().size());
        EXPECT_EQ(trainer.mesh().all().stats().total().bytes_sent,
                  2 * (P - 1) * parallel.elements() / P * 4);
        EXPECT_EQ(trainer.ranks().stats().total().bytes_sent, numbers(3) + numbers(2 + K));
      }
    });
}

// ---- checkpoints --------------------------------------------------------------------------------

TEST(TrainOnRanks, ACheckpointOfFourRanksGoesOnOnAnyNumber) {
  for (const char* zero : {"0", "1"}) {
    const Flags flags{{"train.zero", zero}};
    const Trained half = train(4, flags, 10), whole = train(4, flags, 20);
    // On four: the same bits.
    const Trained resumed = train(4, flags, 20, &half.checkpoint);
    EXPECT_EQ(resumed.losses, std::vector<double>(whole.losses.begin() + 10, whole.losses.end()));
    EXPECT_EQ(resumed.state, whole.state);
    for (const int ranks : {1, 2, 3}) {
      for (const char* other : {"0", "1"}) {
        // The state arrives bit for bit, whatever holds it then.
        const Trained same = train(ranks, {{"train.zero", other}}, 10, &half.checkpoint);
        EXPECT_EQ(same.state, half.state) << ranks;
      }
      const Trained fewer = train(ranks, flags, 20, &half.checkpoint);
      expect_near(fewer.losses, resumed.losses, kRounding);
    }
  }
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
  expect(error(3, {}, {{"optimizer.lr", "0.1"}}), "config: rank 2 differs from rank 0");
  expect(error(3, {{"mesh.data", "4"}}),
         "data 4 x ring 1 x ulysses 1 is 4 ranks, but the job has 3");
  expect(error(2, {{"optimizer.kind", "muon"}, {"train.zero", "1"}}),
         "train.zero = 1 cuts matrices into pieces, but optimizer muon needs them whole");
  expect(error(4, {{"train.batch", "2"}}), "a batch of 2 leaves some of 4 ranks without a sample");
  expect(error(2, {{"train.graph", "on"}}), "steps of several ranks cannot be graphs");
}

// Rank 2 of 4 fails after step 3; the others train on, and have saved step 2 with its help.
TEST(TrainOnRanks, ARankThatFailsOrHangsEndsTheJobAndTheRestGoOn) {
  const std::filesystem::path runs =
      std::filesystem::temp_directory_path() / ("fovea_ranks_test." + std::to_string(getpid()));
  const Flags flags{{"train.zero", "1"}, {"train.save_every", "2"}, {"train.eval_every", "0"}};
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
