// SPDX-License-Identifier: Apache-2.0
#include "train/sequence_parts.h"

#include <algorithm>
#include <bit>

#include "train/model_options.h"

namespace fovea::train {
namespace {

distributed::Order parse_order(const std::string& order) {
  for (const auto o : {distributed::Order::contiguous, distributed::Order::striped})
    if (order == distributed::name(o)) return o;
  return distributed::Order::zigzag;
}

}  // namespace

distributed::MeshSizes mesh_sizes(const MeshOptions& options, int ranks) {
  distributed::MeshSizes sizes{static_cast<int>(options.data), static_cast<int>(options.ring),
                               static_cast<int>(options.ulysses)};
  if (sizes.data == 0)
    sizes.data = static_cast<int>(std::max<int64_t>(1, ranks / (options.ring * options.ulysses)));
  return sizes;
}

void SequenceParts::check(const Experiment& experiment, const Model& model, int64_t tokens) {
  const auto [_, R, U] = mesh_.sizes();
  if (options_.block > 0)
    check_blocks(experiment, tokens);
  else if (R * U == 1)
    return;
  const std::string mesh = concat("mesh: ring ", R, " x ulysses ", U, ": "),
                    other = "; mesh.data cuts batches of any model";
  FOVEA_CHECK(tokens > 0, mesh, "model ", experiment.model.kind(),
              " takes whole samples only, gpt with softmax_attention parts of sequences", other);
  FOVEA_CHECK(tokens >= int64_t{R} * U, mesh, "a sequence of ", tokens, " tokens leaves some of ",
              R * U, " ranks without one", other);
  const std::string why = model.refuses(part_of(tokens));
  FOVEA_CHECK(why.empty(), mesh, why, other);
}

// What would make a step another one on another mesh.
void SequenceParts::check_blocks(const Experiment& experiment, int64_t tokens) const {
  const auto [P, R, U] = mesh_.sizes();
  const TrainOptions& train = experiment.train;
  const std::string block =
      concat("mesh.block = ", options_.block, ": the same bits on every mesh need ");
  FOVEA_CHECK(options_.order == "contiguous" && options_.strategy == "gather" && U == 1, block,
              "mesh.order = contiguous, mesh.strategy = gather and mesh.ulysses = 1, found ",
              options_.order, ", ", options_.strategy, " and ", U);
  const auto* gpt = dynamic_cast<const GptModelOptions*>(&experiment.model.options());
  FOVEA_CHECK(gpt != nullptr && gpt->attention.kind() == "softmax_attention", block,
              "attention softmax_attention, found ",
              gpt != nullptr ? gpt->attention.kind() : experiment.model.kind());
  FOVEA_CHECK(std::has_single_bit(static_cast<unsigned>(R)), block,
              "a ring of 1, 2, 4, 8 ... ranks, found ", R);
  FOVEA_CHECK(tokens % (R * options_.block) == 0, block,
              "sequences of a multiple of mesh.ring x mesh.block = ", R * options_.block,
              " tokens, found ", tokens);
  FOVEA_CHECK(train.micro_batch > 0 &&
                  (train.micro_batch == 1 || train.batch % (P * train.micro_batch) == 0),
              block, "forward passes of the same samples: train.micro_batch = 1, or a number that ",
              "divides the ", train.batch, " samples over ", P, " data ranks, found ",
              train.micro_batch);
  FOVEA_CHECK(train.graph != "on", block, "steps without a graph: train.graph = auto, found on");
  FOVEA_CHECK(train.zero == 0, block, "the norm of whole gradients: train.zero = 0, found 1");
}

SequenceParts::Cut SequenceParts::cut(const data::Batch& whole) {
  if (mesh_.context().size() == 1 && options_.block == 0) return {whole, nullptr};
  const distributed::ContextPart& part = part_of(whole.inputs.dim(1));
  return {{part.take(whole.inputs, 1), part.take(whole.targets, 1), {}}, &part};
}

const distributed::ContextPart& SequenceParts::part_of(int64_t tokens) {
  auto& part = parts_[tokens];
  if (!part) {
    distributed::ContextOptions options;
    if (options_.strategy == "gather") options.exchange = distributed::Exchange::gather;
    options.block = options_.block;
    part = std::make_unique<distributed::ContextPart>(mesh_, parse_order(options_.order), tokens,
                                                      options);
  }
  return *part;
}

}  // namespace fovea::train
