// SPDX-License-Identifier: Apache-2.0
// Training in blocks of tokens (mesh.block): the same bits on every mesh.
#include "core/testing/devices.h"
#include "train/ranks_test_util.h"

namespace fovea::train {
namespace {

const Flags kMesh{{"mesh.block", "8"}, {"mesh.order", "contiguous"}, {"mesh.strategy", "gather"}};

Flags joined(Flags a, const Flags& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
Flags mesh(int data, int ring) {
  return joined(kMesh, {{"mesh.data", std::to_string(data)}, {"mesh.ring", std::to_string(ring)}});
}

void expect_same_bits(const Trained& found, const Trained& expected, const char* what) {
  EXPECT_EQ(found.losses, expected.losses) << what;
  EXPECT_EQ(found.norms, expected.norms) << what;
  EXPECT_EQ(found.held_out, expected.held_out) << what;
  EXPECT_EQ(found.state, expected.state) << what;
}

// Two layers, a tied head, dropout of activations and probabilities, clipping, averages and
// accumulation.
const Flags kModel{{"data.context", "32"},
                   {"model.context", "32"},
                   {"train.batch", "4"},
                   {"train.micro_batch", "1"},
                   {"data.val_samples", "5"}};

TEST(Blocks, AHundredStepsAreTheSameBitsOnEveryMesh) {
  const Trained one = train(1, joined(kModel, mesh(1, 1)), 100);
  for (const auto& [data, ring] : {std::pair{1, 2}, {1, 4}, {2, 1}, {4, 1}, {2, 2}})
    expect_same_bits(train(data * ring, joined(kModel, mesh(data, ring)), 100), one,
                     concat(data, " x ", ring).c_str());
  const Trained plain = train(1, kModel, 100);
  expect_near(one.losses, plain.losses, kRounding);
  expect_near(one.norms, plain.norms, kRounding);
}

}  // namespace
}  // namespace fovea::train
