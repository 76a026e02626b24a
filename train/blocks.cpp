// SPDX-License-Identifier: Apache-2.0
#include "train/blocks.h"

#include <bit>

#include "train/model_options.h"

namespace fovea::train {

void check_blocks(const Experiment& experiment, const distributed::MeshSizes& mesh,
                  int64_t tokens) {
  const auto [P, R, U] = mesh;
  const TrainOptions& train = experiment.train;
  const MeshOptions& options = experiment.mesh;
  const std::string block =
      concat("mesh.block = ", options.block, ": the same bits on every mesh need ");
  FOVEA_CHECK(options.order == "contiguous" && options.strategy == "gather" && U == 1, block,
              "mesh.order = contiguous, mesh.strategy = gather and mesh.ulysses = 1, found ",
              options.order, ", ", options.strategy, " and ", U);
  const auto* gpt = dynamic_cast<const GptModelOptions*>(&experiment.model.options());
  FOVEA_CHECK(gpt != nullptr && gpt->attention.kind() == "softmax_attention", block,
              "attention softmax_attention, found ",
              gpt != nullptr ? gpt->attention.kind() : experiment.model.kind());
  FOVEA_CHECK(std::has_single_bit(static_cast<unsigned>(R)), block,
              "a ring of 1, 2, 4, 8 ... ranks, found ", R);
  FOVEA_CHECK(tokens % (R * options.block) == 0, block,
              "sequences of a multiple of mesh.ring x mesh.block = ", R * options.block,
              " tokens, found ", tokens);
  FOVEA_CHECK(train.micro_batch > 0 &&
                  (train.micro_batch == 1 || train.batch % (P * train.micro_batch) == 0),
              block, "forward passes of the same samples: train.micro_batch = 1, or a number that ",
              "divides the ", train.batch, " samples over ", P, " data ranks, found ",
              train.micro_batch);
  FOVEA_CHECK(train.graph != "on", block, "steps without a graph: train.graph = auto, found on");
  FOVEA_CHECK(train.zero == 0, block, "the norm of whole gradients: train.zero = 0, found 1");
}

}  // namespace fovea::train
