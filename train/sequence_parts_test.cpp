// SPDX-License-Identifier: Apache-2.0
// One sequence over several ranks against one rank: the same losses, norms and weights within
// rounding, whatever the mesh, the order and the strategy.
#include <unistd.h>

#include "attention/over_parts_cases.h"
#include "core/io/hdf5.h"
#include "core/testing/devices.h"
#include "train/ranks_test_util.h"

namespace fovea::train {
namespace {

struct Case {
  const char* what;
  Flags mesh;
  Flags more = {};  // of the one rank too
  int64_t steps = 10;
  nn::MixerFactory mixer = {};
};

Flags joined(Flags a, const Flags& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
int ranks_of(const Flags& mesh) {
  Experiment e;
  load(e, mesh);
  return static_cast<int>(e.mesh.ranks());
}

void expect_as(const Trained& one, const Case& c) {
  const testing::Message where = testing::Message() << c.what;
  SCOPED_TRACE(where);
  const Trained many = train(ranks_of(c.mesh), joined(c.more, c.mesh), c.steps, nullptr, c.mixer);
  expect_near(many.losses, one.losses, kRounding);
  expect_near(many.norms, one.norms, kRounding);
  EXPECT_NEAR(many.held_out, one.held_out, kRounding);
  ASSERT_EQ(many.state.size(), one.state.size());
  for (size_t i = 0; i < one.state.size(); ++i) {
    const auto& [name, values] = one.state[i];
    EXPECT_EQ(many.state[i].first, name);
    if (!name.starts_with("model.")) continue;
    for (size_t e = 0; e < values.size(); ++e)
      ASSERT_NEAR(many.state[i].second[e], values[e], 1e-4) << name << ' ' << e;
  }
}

void expect_as_one_rank(const Case& c) {
  expect_as(train(1, c.more, c.steps, nullptr, c.mixer), c);
}

// Dropout of activations and probabilities, clipping, averages and micro-batches are on.
TEST(SequenceParts, EveryMeshTrainsAsOneRankDoes) {
  const Flags ring2{{"mesh.ring", "2"}}, ring4{{"mesh.ring", "4"}}, ulysses2{{"mesh.ulysses", "2"}},
      usp{{"mesh.ring", "2"}, {"mesh.ulysses", "2"}},
      data{{"mesh.data", "2"}, {"mesh.ring", "2"}, {"train.zero", "1"}};
  for (const Case& c : {Case{"ring 2", ring2}, Case{"ring 4", ring4}, Case{"ulysses 2", ulysses2},
                        Case{"ring 2 x ulysses 2", usp}, Case{"data 2 x ring 2, zero 1", data}})
    expect_as_one_rank(c);
}

TEST(SequenceParts, EveryOrderAndStrategyTrainsAlike) {
  for (const char* order : {"contiguous", "striped", "zigzag", "dispatched"})
    for (const char* strategy : {"ring", "gather"})
      expect_as_one_rank(
          {order, {{"mesh.ring", "2"}, {"mesh.order", order}, {"mesh.strategy", strategy}}, {}, 5});
  expect_as_one_rank(
      {"double ring", {{"mesh.ring", "4"}, {"mesh.window", "2"}, {"train.zero", "1"}}, {}, 5});
  expect_as_one_rank({"chunks of 1, two heads at once",
                      {{"mesh.ring", "3"},
                       {"mesh.order", "dispatched"},
                       {"mesh.chunk", "1"},
                       {"mesh.strategy", "gather"},
                       {"mesh.heads_per_gather", "2"}},
                      {},
                      5});
}

// Documents of 5 to 12 tokens and up to 11 of padding a sequence, of which a rank may have all.
Flags packed(const char* mask) {
  return {{"data.kind", "packed"},
          {"data.context", "31"},
          {"data.shortest", "5"},
          {"data.of.kind", "recall"},
          {"data.of.context", "12"},
          {"data.of.vocab_size", "17"},
          {"data.of.pairs", "2"},
          {"data.of.queries", "5"},
          {"data.of.val_samples", "33"},
          {"model.context", "31"},
          {"model.attention.kind", "long_context"},
          {"model.attention.mask", mask},
          {"model.attention.global_tokens", "2"},
          {"model.attention.block", "3"},
          {"model.attention.heads", "2"}};
}

TEST(SequenceParts, PackedDocumentsTrainAsOnOneRank) {
  const Flags ring{{"mesh.ring", "4"}}, usp{{"mesh.ring", "2"}, {"mesh.ulysses", "2"}},
      gather{{"mesh.ring", "2"}, {"mesh.order", "dispatched"}, {"mesh.strategy", "gather"}},
      data{{"mesh.data", "2"}, {"mesh.ring", "2"}, {"train.zero", "1"}};
  const std::vector<std::pair<const char*, std::vector<Flags>>> cases{
      {"causal", {ring, data}},
      {"causal_document", {usp, gather, data}},
      {"block_causal_document", {usp, gather}},
      {"share_question", {ring}},
      {"causal_blockwise", {gather}},
      {"global_sliding_window", {usp}}};
  for (const auto& [mask, meshes] : cases) {
    Flags flags = packed(mask);
    if (std::string(mask) == "global_sliding_window")
      flags.push_back({"model.attention.window", "[6, 0]"});
    for (const Flags& mesh : meshes) expect_as_one_rank({mask, mesh, flags, 4});
  }
  // Without documents these two would be one mask.
  EXPECT_NE(train(1, packed("share_question"), 1).losses,
            train(1, packed("causal_document"), 1).losses);
}

// A system of any family needs nothing but the engines' calls with the part.
TEST(SequenceParts, EveryEngineTrainsAsOnOneRank) {
  const Flags ordered{{"mesh.order", "contiguous"}};
  const auto mesh = [&](const Flags& flags) { return joined(ordered, flags); };
  const Flags ring2 = mesh({{"mesh.ring", "2"}}), ring3 = mesh({{"mesh.ring", "3"}}),
              ring4 = mesh({{"mesh.ring", "4"}, {"mesh.state", "pipeline"}}),
              usp = mesh({{"mesh.ring", "2"}, {"mesh.ulysses", "2"}, {"mesh.state", "chain"}}),
              data = mesh({{"mesh.data", "2"}, {"mesh.ring", "2"}, {"train.zero", "1"}}),
              ulysses2{{"mesh.ulysses", "2"}};
  Flags flags = packed("causal");
  std::erase_if(flags, [](const config::Flag& f) { return f.key.starts_with("model.attention."); });
  flags.push_back({"train.micro_batch", "6"});
  for (const auto& [name, mixer] : attention::part_mixers(4)) {
    const Trained one = train(1, flags, 10, nullptr, mixer);
    std::vector<Flags> ways(1, ulysses2);
    if (name == "linear, decay a token" || name == "linear, decay a head") {
      ways = {ring3, usp};
    } else if (name != "sigmoid by heads") {
      ways = {ring2, ring3, ring4, ulysses2, usp, data};
    }
    for (const Flags& way : ways) expect_as(one, {name.c_str(), way, flags, 10, mixer});
  }
}

TEST(SequenceParts, LengthsNeedNotDivide) {
  const Flags odd{{"data.context", "23"}, {"model.context", "25"}};
  for (const Flags& mesh :
       {Flags{{"mesh.ring", "3"}}, Flags{{"mesh.ring", "2"}, {"mesh.ulysses", "2"}}})
    expect_as_one_rank({"23 tokens", mesh, odd, 6});
}

// What counts tokens counts them in the whole sequence, in every block.
TEST(SequenceParts, PositionsOfEveryKindAndWhatElseAttentionOffers) {
  const Flags usp{{"mesh.ring", "2"}, {"mesh.ulysses", "2"}}, ring{{"mesh.ring", "2"}};
  for (const Case& c : {Case{"sinusoidal, recompute",
                             ring,
                             {{"model.positions", "sinusoidal"}, {"model.recompute", "true"}}},
                        Case{"rope, l2, window",
                             usp,
                             {{"model.positions", "none"},
                              {"model.attention.rope", "half"},
                              {"model.attention.qk_norm", "l2"},
                              {"model.attention.window", "9"}}},
                        Case{"alibi, sink, softcap, grouped heads",
                             usp,
                             {{"model.positions", "none"},
                              {"model.attention.alibi", "true"},
                              {"model.attention.sink", "true"},
                              {"model.attention.softcap", "20"},
                              {"model.attention.heads", "4"},
                              {"model.attention.kv_heads", "1"}}}}) {
    Case shorter = c;
    shorter.steps = 6;
    expect_as_one_rank(shorter);
  }
}

TEST(SequenceParts, ACheckpointGoesOnOnAnotherMesh) {
  const Flags ring{{"mesh.ring", "4"}, {"train.zero", "1"}};
  const Trained half = train(4, ring, 5), whole = train(4, ring, 10);
  const std::vector<double> rest(whole.losses.begin() + 5, whole.losses.end());
  const Trained same = train(4, ring, 10, &half.checkpoint);
  EXPECT_EQ(same.losses, rest);
  EXPECT_EQ(same.state, whole.state);
  for (const Flags& mesh : {Flags{}, Flags{{"mesh.data", "2"}}, Flags{{"mesh.ulysses", "2"}},
                            Flags{{"mesh.data", "2"}, {"mesh.ring", "2"}}})
    expect_near(train(ranks_of(mesh), mesh, 10, &half.checkpoint).losses, rest, kRounding);
}

// Of all ranks together, which share an allocator, what a step takes beyond the weights' own.
int64_t step_bytes(int ranks, const Flags& flags) {
  int64_t bytes = 0;
  const ThreadShare share(1);
  run_ranks(ranks, [&](const Communicator& job) {
    Experiment e;
    load(e, flags);
    Trainer trainer(e, job);
    trainer.step();
    job.barrier();
    if (job.rank() == 0) {
      reset_peak();
      bytes = -memory_stats().live_bytes;
    }
    job.barrier();
    trainer.step();
    job.barrier();
    if (job.rank() == 0) bytes += memory_stats().peak_bytes;
  });
  return bytes;
}

TEST(SequenceParts, ARankHoldsItsTokensActivations) {
  const Flags flags{{"data.context", "512"},    {"model.context", "512"}, {"model.dim", "32"},
                    {"train.batch", "2"},       {"train.ema", "0"},       {"model.layers", "3"},
                    {"model.positions", "none"}};
  const auto one = static_cast<double>(step_bytes(1, flags));
  for (const auto& mesh :
       {Flags{{"mesh.ring", "4"}}, Flags{{"mesh.ring", "2"}, {"mesh.ulysses", "2"}}}) {
    const double rank = static_cast<double>(step_bytes(4, joined(flags, mesh))) / 4;
    EXPECT_LT(rank, 0.4 * one) << "of one rank: " << one;
  }
}

class SequencePartsOn : public OnDevices {};

TEST_P(SequencePartsOn, TrainAsOneRankDoes) {
  const Flags flags{{"train.device", std::string(name(device().kind))},
                    {"train.batch", "2"},
                    {"model.layers", "1"},
                    {"model.dim", "8"},
                    {"data.val_samples", "2"}};
  for (const char* order : {"zigzag", "striped"})
    expect_as_one_rank({order, {{"mesh.ring", "2"}, {"mesh.order", order}}, flags, 2});
}

TEST_P(SequencePartsOn, DocumentsAndEveryEngineTrainAsOnOneRank) {
  Flags flags =
      joined(packed("causal_document"), {{"train.device", std::string(name(device().kind))},
                                         {"train.batch", "2"},
                                         {"model.layers", "1"},
                                         {"model.dim", "8"},
                                         {"data.of.val_samples", "4"}});
  const Flags ring{{"mesh.ring", "2"}, {"mesh.order", "contiguous"}};
  expect_as_one_rank({"documents", ring, flags, 2});
  std::erase_if(flags, [](const config::Flag& f) { return f.key.starts_with("model.attention."); });
  for (const auto& [name, mixer] : attention::part_mixers(2))
    if (name == "delta behind a convolution" || name == "linear, decay a token" || name == "window")
      expect_as_one_rank({name.c_str(), ring, flags, 1, mixer});
}
FOVEA_ON_DEVICES(SequencePartsOn);

// One that says nothing of parts.
class Silent final : public attention::PartMixer {
 public:
  explicit Silent(int64_t channels) : PartMixer(channels, 1, channels) {}
  Variable forward(const Variable& x, const nn::MixerContext&) override { return x; }
};

TEST(SequenceParts, WhatCannotBeCutIsRefusedInOneLine) {
  const auto expect = [](int ranks, const Flags& flags, const std::string& part,
                         bool small = true) {
    const std::string error = error_of([&] {
      run_ranks(ranks, [&](const Communicator& job) {
        Experiment e;
        if (small)
          load(e, flags);
        else
          config::load_text(e, "", "test", flags);
        Trainer trainer(e, job);
      });
    });
    EXPECT_NE(error.find(part), std::string::npos) << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  };
  expect(3, {{"mesh.ring", "2"}}, "data 1 x ring 2 x ulysses 1 is 2 ranks, but the job has 3");
  expect(3, {{"mesh.ulysses", "3"}},
         "mesh: ring 1 x ulysses 3: attention softmax_attention has 2 heads, which ulysses 3 does "
         "not divide; mesh.data");
  expect(4, {{"mesh.ring", "4"}, {"data.context", "3"}, {"data.pairs", "1"}, {"data.queries", "1"}},
         "a sequence of 3 tokens leaves some of 4 ranks without one");
  expect(4, {{"mesh.ring", "4"}, {"mesh.window", "3"}},
         "mesh.window = 3 does not divide mesh.ring = 4; 0 is one ring of all");
  expect(1, {{"mesh.window", "2"}}, "mesh.window = 2 does not divide mesh.ring = 1");
  expect(4, {{"mesh.ring", "4"}, {"mesh.window", "2"}, {"mesh.strategy", "gather"}},
         "mesh.window = 2 is of mesh.strategy = ring, found gather");
  expect(2, {{"mesh.ring", "2"}, {"mesh.heads_per_gather", "2"}},
         "mesh.heads_per_gather = 2 is of mesh.strategy = gather, found ring");
  expect(2, {{"mesh.ring", "2"}, {"mesh.chunk", "2"}},
         "mesh.chunk = 2 is of mesh.order = dispatched, found zigzag");
  expect(2, {{"mesh.ring", "2"}, {"mesh.order", "dispatched"}, {"mesh.chunk", "2"}},
         "mesh: ring 2 x ulysses 1: mesh.chunk = 2 gives a rank 6 chunks, which a ring attends in "
         "36 calls a step; take mesh.strategy = gather, or a chunk of 3");
  expect(4, {{"mesh.ring", "4"}, {"mesh.order", "dispatched"}, {"mesh.chunk", "9"}},
         "mesh.chunk = 9 makes 3 chunks of 24 tokens for 4 ranks of a ring");
  expect(4,
         {{"mesh.ring", "2"},
          {"mesh.ulysses", "2"},
          {"mesh.order", "dispatched"},
          {"mesh.chunk", "23"}},
         "mesh.chunk = 23 leaves a chunk of 1 tokens for 2 ranks of ulysses");
  const std::string error = error_of([] {
    train(2, {{"mesh.ring", "2"}}, 1, nullptr,
          [](int64_t channels, int64_t, int64_t) { return std::make_unique<Silent>(channels); });
  });
  EXPECT_NE(error.find("mesh: ring 2 x ulysses 1: attention given by the program takes whole "
                       "sequences only; parts of them: long_context, softmax_attention; mesh.data"),
            std::string::npos)
      << error;
}

// Images of 4 x 3 patches; class token or mean.
TEST(SequenceParts, ImagesTrainAsOnOneRank) {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("fovea_images." + std::to_string(getpid()) + ".h5");
  constexpr int64_t kImages = 24;
  Hdf5Writer file;
  for (const std::string split : {"train", "val"}) {
    const Tensor pixels = Tensor::empty({kImages, 2, 8, 6});
    fill_uniform(pixels, RngKey(1, "test", split));
    std::vector<int64_t> labels;
    for (int64_t i = 0; i < kImages; ++i) labels.push_back(i * i % 3);
    file.write(split + "/images", pixels);
    file.write(split + "/labels", Tensor::from(labels, {kImages}));
  }
  file.save(path);
  for (const char* pool : {"class", "mean"}) {
    const Flags flags{
        {"data.kind", "hdf5"}, {"data.path", path.string()},
        {"model.kind", "vit"}, {"model.patch", "2"},
        {"model.pool", pool},  {"model.positions", pool[0] == 'c' ? "learned" : "sinusoidal"}};
    const Trained one = train(1, flags, 10);
    for (const Flags& mesh :
         {Flags{{"mesh.ring", "2"}}, Flags{{"mesh.ring", "3"}, {"mesh.order", "striped"}},
          Flags{{"mesh.ring", "2"}, {"mesh.ulysses", "2"}, {"mesh.strategy", "gather"}},
          Flags{{"mesh.data", "2"}, {"mesh.ring", "2"}, {"train.zero", "1"}}})
      expect_as(one, {pool, mesh, flags, 10});
  }
  // A rank with the class token alone.
  Flags small{{"data.kind", "hdf5"},
              {"data.path", path.string()},
              {"model.kind", "vit"},
              {"model.patch", "2"},
              {"model.pool", "class"}};
  expect_as_one_rank({"13 ranks", {{"mesh.ring", "13"}, {"mesh.order", "contiguous"}}, small, 2});
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace fovea::train
