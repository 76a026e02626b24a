// SPDX-License-Identifier: Apache-2.0
#include "train/sequence_parts.h"

#include <algorithm>

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
  if (R * U == 1 && options_.block == 0) return;
  const std::string mesh = concat("mesh: ring ", R, " x ulysses ", U, ": "),
                    other = "; mesh.data cuts batches of any model";
  FOVEA_CHECK(tokens > 0, mesh, "model ", experiment.model.kind(),
              " takes whole samples only, gpt with softmax_attention parts of sequences", other);
  FOVEA_CHECK(tokens >= int64_t{R} * U, mesh, "a sequence of ", tokens, " tokens leaves some of ",
              R * U, " ranks without one", other);
  const std::string why = model.refuses(part_of(tokens));
  FOVEA_CHECK(why.empty(), mesh, why, other);
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
