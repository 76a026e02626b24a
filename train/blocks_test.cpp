// SPDX-License-Identifier: Apache-2.0
// Training in blocks of tokens (mesh.block): the same bits on every mesh.
#include "core/testing/devices.h"
#include "train/ranks_test_util.h"

namespace fovea::train {
namespace {

Flags joined(Flags a, const Flags& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
struct Sizes {
  int data, ring;
};
Flags mesh(const Sizes& sizes) {
  return {{"mesh.data", std::to_string(sizes.data)},
          {"mesh.ring", std::to_string(sizes.ring)},
          {"mesh.order", "contiguous"},
          {"mesh.strategy", "gather"}};
}

// Two layers, learned positions, a tied head; dropout of activations and probabilities, clipping,
// averages and accumulation are on. Four blocks a sequence, most of them without a scored position.
const Flags kModel{{"data.context", "32"},
                   {"model.context", "32"},
                   {"train.batch", "4"},
                   {"train.micro_batch", "1"},
                   {"data.val_samples", "5"}};
const Flags kBlocks = joined(kModel, {{"mesh.block", "8"}});

Trained train_on(const Sizes& sizes, const Flags& flags, int64_t steps,
                 const Checkpoint* from = nullptr) {
  return train(sizes.data * sizes.ring, joined(flags, mesh(sizes)), steps, from);
}

// Losses, norms, the held-out loss; weights, moments and averages.
void expect_same_bits(const Trained& found, const Trained& expected, const Sizes& sizes) {
  const testing::Message where = testing::Message()
                                 << "data " << sizes.data << " x ring " << sizes.ring;
  SCOPED_TRACE(where);
  EXPECT_EQ(found.losses, expected.losses);
  EXPECT_EQ(found.norms, expected.norms);
  EXPECT_EQ(found.held_out, expected.held_out);
  EXPECT_EQ(found.state, expected.state);
}
void expect_same_bits(const Flags& flags, int64_t steps, const std::vector<Sizes>& meshes) {
  const Trained one = train_on({1, 1}, flags, steps);
  for (const Sizes& sizes : meshes) expect_same_bits(train_on(sizes, flags, steps), one, sizes);
}

TEST(Blocks, AHundredStepsAreTheSameBitsOnEveryMesh) {
  const Trained one = train_on({1, 1}, kBlocks, 100);
  for (const Sizes& sizes : {Sizes{1, 2}, Sizes{1, 4}, Sizes{2, 1}, Sizes{4, 1}, Sizes{2, 2}})
    expect_same_bits(train_on(sizes, kBlocks, 100), one, sizes);
  const Trained plain = train(1, kModel, 100);
  expect_near(one.losses, plain.losses, kRounding);
  expect_near(one.norms, plain.norms, kRounding);
  EXPECT_NEAR(one.held_out, plain.held_out, kRounding);
}

// Why: products of other sizes, and sums in another order, round differently.
TEST(Blocks, WithoutThemTheBitsAreOthers) {
  const Trained one = train_on({1, 1}, kModel, 5);
  for (const Sizes& sizes : {Sizes{1, 2}, Sizes{2, 1}})
    EXPECT_NE(train_on(sizes, kModel, 5).state, one.state);
}

// Any number of data ranks, with unequal shares; and a ring of as many ranks as there are blocks.
TEST(Blocks, ManyRanks) {
  expect_same_bits(joined(kBlocks, {{"train.batch", "7"}}), 4, {{3, 1}, {4, 1}, {5, 1}});
  expect_same_bits(joined(kBlocks, {{"mesh.block", "4"}}), 4, {{1, 8}, {2, 4}});
}

TEST(Blocks, EveryKindOfParameter) {
  expect_same_bits(joined(kBlocks, {{"model.positions", "none"},
                                    {"model.tied_head", "false"},
                                    {"model.norm", "rms"},
                                    {"model.mlp", "swiglu"},
                                    {"model.recompute", "true"},
                                    {"model.attention.rope", "half"},
                                    {"model.attention.qk_norm", "rms"},
                                    {"model.attention.sink", "true"},
                                    {"model.attention.heads", "4"},
                                    {"model.attention.kv_heads", "2"},
                                    {"train.label_smoothing", "0.1"},
                                    {"train.z_loss", "1e-3"}}),
                   8, {{1, 4}, {2, 2}});
  expect_same_bits(joined(kBlocks, {{"model.positions", "sinusoidal"},
                                    {"model.drop_path", "0.2"},
                                    {"model.attention.window", "9"},
                                    {"model.attention.alibi", "true"},
                                    {"model.attention.qk_norm", "l2"},
                                    {"train.micro_batch", "2"}}),
                   8, {{1, 2}, {2, 2}});
}

TEST(Blocks, Bf16) {
  expect_same_bits(joined(kBlocks, {{"train.precision", "bf16"}}), 8, {{1, 4}, {4, 1}, {2, 2}});
}

TEST(Blocks, EveryOptimizer) {
  for (const char* kind : {"sgd", "lion", "muon"})
    expect_same_bits(joined(kBlocks, {{"optimizer.kind", kind}}), 4, {{2, 2}});
}

TEST(Blocks, ACheckpointGoesOnWithTheSameBitsOnAnotherMesh) {
  const Trained whole = train_on({1, 1}, kBlocks, 8), half = train_on({2, 2}, kBlocks, 4);
  for (const Sizes& sizes : {Sizes{1, 1}, Sizes{1, 4}, Sizes{4, 1}}) {
    const Trained rest = train_on(sizes, kBlocks, 8, &half.checkpoint);
    EXPECT_EQ(rest.state, whole.state);
    EXPECT_EQ(rest.losses, std::vector<double>(whole.losses.begin() + 4, whole.losses.end()));
  }
}

class BlocksOn : public OnDevices {};

TEST_P(BlocksOn, AreTheSameBits) {
  expect_same_bits(joined(kBlocks, {{"train.device", std::string(name(device().kind))},
                                    {"model.layers", "1"},
                                    {"model.dim", "8"},
                                    {"mesh.block", "16"},
                                    {"train.batch", "2"},
                                    {"data.val_samples", "1"}}),
                   2, {{1, 2}});
}
FOVEA_ON_DEVICES(BlocksOn);

// A loss that is finite, gradients that are not, or too large for exact sums.
TEST(Blocks, AGradientThatDoesNotFitEndsTheRunByName) {
  const std::string error = error_of([] {
    train_on({1, 2}, joined(kBlocks, {{"train.z_loss", "1e12"}}), 3);
  });
  EXPECT_NE(
      error.find("is not finite, or not below 8.38861e+06 in magnitude, as exact sums need it"),
      std::string::npos)
      << error;
}

TEST(Blocks, WhatCannotBeIsRefusedInOneLine) {
  const auto expect = [](const Sizes& sizes, const Flags& flags, const std::string& part) {
    const std::string error = error_of([&] { train_on(sizes, joined(kBlocks, flags), 0); });
    EXPECT_NE(error.find(part), std::string::npos) << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  };
  const std::string block = "mesh.block = 8: the same bits on every mesh need ";
  expect({1, 3}, {}, block + "a ring of 1, 2, 4, 8 ... ranks, found 3");
  expect({1, 1}, {{"data.context", "28"}},
         block + "sequences of a multiple of mesh.ring x mesh.block = 8 tokens, found 28");
  expect({1, 8}, {},
         block + "sequences of a multiple of mesh.ring x mesh.block = 64 tokens, found 32");
  expect({2, 1}, {{"train.micro_batch", "0"}},
         block +
             "forward passes of the same samples: train.micro_batch = 1, or a number that "
             "divides the 4 samples over 2 data ranks, found 0");
  expect({2, 1}, {{"train.micro_batch", "4"}}, "over 2 data ranks, found 4");
  expect({2, 1}, {{"train.zero", "1"}}, block + "the norm of whole gradients: train.zero = 0");
  expect({1, 1}, {{"train.graph", "on"}},
         block + "steps without a graph: train.graph = auto, found on");
  const std::string other = error_of([&] {
    Experiment e;
    config::load_text(e, "", "test",
                      joined(mesh({1, 1}), {{"data.kind", "copy"},
                                            {"model.kind", "gpt"},
                                            {"model.attention.kind", "long_context"},
                                            {"mesh.block", "8"}}));
    Trainer trainer(e);
  });
  EXPECT_EQ(other, block + "attention softmax_attention, found long_context");
  const std::string zigzag = error_of([] { train(1, kBlocks, 0); });
  EXPECT_NE(zigzag.find(block + "mesh.order = contiguous, mesh.strategy = gather and "
                                "mesh.ulysses = 1, found zigzag, ring and 1"),
            std::string::npos)
      << zigzag;
  const std::string ulysses = error_of([] {
    train(2, joined(kBlocks, joined(mesh({1, 1}), {{"mesh.ulysses", "2"}})), 0);
  });
  EXPECT_NE(ulysses.find("found contiguous, gather and 2"), std::string::npos) << ulysses;
}

}  // namespace
}  // namespace fovea::train
