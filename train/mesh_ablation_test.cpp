// SPDX-License-Identifier: Apache-2.0
// The loss curve of a run does not tell its mesh: the ablation of experiments/long_context in
// small, and runs of 200 steps.
#include "train/ranks_test_util.h"

namespace fovea::train {
namespace {

// Largest |found / expected - 1| over the steps.
double largest_difference(const std::vector<double>& found, const std::vector<double>& expected) {
  EXPECT_EQ(found.size(), expected.size());
  double most = 0.0;
  for (size_t i = 0; i < std::min(found.size(), expected.size()); ++i)
    most = std::max(most, std::abs(found[i] / expected[i] - 1.0));
  return most;
}

TEST(MeshAblation, PackedDocumentsGiveOneLossCurveOverEveryMesh) {
  const auto train_on = [](const Flags& mesh) {
    const auto configure = [&](Experiment& e) {
      Flags flags{
          {"data.context", "96"},        {"data.of.context", "32"}, {"data.of.pairs", "4"},
          {"data.of.queries", "8"},      {"data.shortest", "9"},    {"data.of.vocab_size", "24"},
          {"data.of.val_samples", "30"}, {"model.dim", "16"},       {"train.batch", "4"}};
      flags.insert(flags.end(), mesh.begin(), mesh.end());
      config::load(e, "experiments/long_context/ablation.toml", flags);
    };
    Experiment e;
    configure(e);
    return train(static_cast<int>(e.mesh.ranks()), configure, 20);
  };
  const Trained one = train_on({});
  for (const Flags& mesh :
       {Flags{{"mesh.data", "4"}}, Flags{{"mesh.ring", "4"}}, Flags{{"mesh.ulysses", "4"}},
        Flags{{"mesh.ring", "2"}, {"mesh.ulysses", "2"}},
        Flags{
            {"mesh.data", "2"}, {"mesh.ring", "2"}, {"mesh.ulysses", "2"}, {"train.zero", "1"}}}) {
    SCOPED_TRACE(mesh[0].key + ' ' + std::to_string(mesh.size()));
    const Trained many = train_on(mesh);
    EXPECT_LT(largest_difference(many.losses, one.losses), kRounding);
    EXPECT_LT(largest_difference(many.norms, one.norms), kRounding);
    EXPECT_NEAR(many.held_out, one.held_out, kRounding);
  }
}

TEST(MeshAblation, TwoHundredStepsOverFourRanksAreThoseOfOne) {
  const Flags flags{
      {"data.kind", "copy"},        {"data.context", "16"}, {"data.vocab_size", "8"},
      {"data.val_samples", "4"},    {"model.layers", "1"},  {"model.context", "16"},
      {"model.init_scale", "6.25"}, {"train.batch", "4"},   {"train.micro_batch", "0"},
      {"train.steps", "200"},       {"model.dropout", "0"}};
  const Trained one = train(1, flags, 200);
  EXPECT_LT(one.losses.back(), 0.9 * one.losses.front());
  for (const Flags& mesh : {Flags{{"mesh.data", "4"}}, Flags{{"mesh.ring", "4"}},
                            Flags{{"mesh.data", "2"}, {"mesh.ring", "2"}, {"train.zero", "1"}}}) {
    Flags many = flags;
    many.insert(many.end(), mesh.begin(), mesh.end());
    // Weights drift apart by rounding at each step; the losses of this run stay within 2e-7.
    EXPECT_LT(largest_difference(train(4, many, 200).losses, one.losses), kRounding);
  }
}

}  // namespace
}  // namespace fovea::train
