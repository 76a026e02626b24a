// SPDX-License-Identifier: Apache-2.0
#include "train/sequence_parts.h"

#include <algorithm>

namespace fovea::train {
namespace {

distributed::Order parse_order(const std::string& order) {
  for (const auto o : {distributed::Order::contiguous, distributed::Order::striped})
    if (order == distributed::name(o)) return o;
  return distributed::Order::zigzag;
}

distributed::StateOptions parse_state(const std::string& strategy) {
  distributed::StateOptions options;
  if (strategy == "chain") options.strategy = distributed::StateStrategy::chain;
  if (strategy == "pipeline") options.strategy = distributed::StateStrategy::pipeline;
  return options;
}

}  // namespace

distributed::MeshSizes mesh_sizes(const MeshOptions& options, int ranks) {
  distributed::MeshSizes sizes{static_cast<int>(options.data), static_cast<int>(options.ring),
                               static_cast<int>(options.ulysses)};
  if (sizes.data == 0)
    sizes.data = static_cast<int>(std::max<int64_t>(1, ranks / (options.ring * options.ulysses)));
  return sizes;
}

// ---- what is refused ----------------------------------------------------------------------------

// Keys that the others leave without effect.
void SequenceParts::check_keys() const {
  const MeshOptions& o = options_;
  FOVEA_CHECK(o.window == 0 || o.ring % o.window == 0, "mesh.window = ", o.window,
              " does not divide mesh.ring = ", o.ring, "; 0 is one ring of all");
  FOVEA_CHECK(o.window == 0 || o.strategy == "ring", "mesh.window = ", o.window,
              " is of mesh.strategy = ring, found ", o.strategy);
  FOVEA_CHECK(o.heads_per_gather == 1 || o.strategy == "gather",
              "mesh.heads_per_gather = ", o.heads_per_gather,
              " is of mesh.strategy = gather, found ", o.strategy);
  FOVEA_CHECK(o.chunk == 0 || dispatched(), "mesh.chunk = ", o.chunk,
              " is of mesh.order = dispatched, found ", o.order);
}

void SequenceParts::check(const Model& model, int64_t context) {
  check_keys();
  const auto [_, R, U] = mesh_.sizes();
  if (R * U == 1 && options_.block == 0) return;
  const int64_t tokens = model.tokens(context);
  const std::string mesh = concat("mesh: ring ", R, " x ulysses ", U, ": "),
                    other = "; mesh.data cuts batches of any model";
  FOVEA_CHECK(tokens >= int64_t{R} * U, mesh, "a sequence of ", tokens, " tokens leaves some of ",
              R * U, " ranks without one", other);
  if (dispatched() && R > 1) {
    const std::string why = refuses_chunks(tokens);
    FOVEA_CHECK(why.empty(), mesh, why);
    FOVEA_CHECK(
        model.mask(1, tokens, Tensor()).has_value(), mesh, "attention ",
        "says no mask by which mesh.order = dispatched could give out tokens; take another");
  }
  parts_[tokens] = make_part(1, tokens, Tensor(), model);
  const std::string why = model.refuses(*parts_[tokens]);
  FOVEA_CHECK(why.empty(), mesh, why, other);
}

// A shard of s stretches makes s^2 calls at each step of a ring, s calls of a gather.
std::string SequenceParts::refuses_chunks(int64_t tokens) const {
  constexpr int64_t kMostStretches = 4;
  const int64_t R = mesh_.sizes().ring, U = mesh_.sizes().ulysses, c = chunk(tokens),
                chunks = (tokens + c - 1) / c, share = (chunks + R - 1) / R, last = tokens % c;
  if (chunks < R)
    return concat("mesh.chunk = ", c, " makes ", chunks, " chunks of ", tokens, " tokens for ", R,
                  " ranks of a ring");
  if (last > 0 && last < U)
    return concat("mesh.chunk = ", c, " leaves a chunk of ", last, " tokens for ", U,
                  " ranks of ulysses");
  if (options_.strategy == "ring" && share > kMostStretches)
    return concat("mesh.chunk = ", c, " gives a rank ", share, " chunks, which a ring attends in ",
                  share * share, " calls a step; take mesh.strategy = gather, or a chunk of ",
                  (tokens + kMostStretches * R - 1) / (kMostStretches * R));
  return "";
}

// ---- parts --------------------------------------------------------------------------------------

SequenceParts::Cut SequenceParts::cut(const data::Batch& whole, const Model& model) {
  if (mesh_.context().size() == 1 && options_.block == 0) return {whole, nullptr};
  const distributed::ContextPart& part = part_of(whole, model);
  if (is_floating(whole.inputs.dtype())) return {whole, &part};
  return {{part.take(whole.inputs, 1), part.take(whole.targets, 1), {}, whole.documents}, &part};
}

const distributed::ContextPart& SequenceParts::part_of(const data::Batch& whole,
                                                       const Model& model) {
  const int64_t B = whole.inputs.dim(0), N = model.tokens(whole.inputs.dim(1));
  if (dispatched() && mesh_.sizes().ring > 1 && whole.documents.defined()) {
    of_documents_ = make_part(B, N, whole.documents, model);
    return *of_documents_;
  }
  auto& part = parts_[N];
  if (!part) part = make_part(B, N, Tensor(), model);
  return *part;
}

std::unique_ptr<distributed::ContextPart> SequenceParts::make_part(int64_t batch, int64_t tokens,
                                                                   const Tensor& documents,
                                                                   const Model& model) const {
  using distributed::Layout;
  const auto [_, R, U] = mesh_.sizes();
  distributed::ContextOptions scores;
  if (options_.strategy == "gather") scores.exchange = distributed::Exchange::gather;
  scores.window = options_.window;
  scores.heads_per_gather = options_.heads_per_gather;
  scores.block = options_.block;
  const Layout layout = dispatched() && R > 1
                            ? Layout::dispatched(*model.mask(batch, tokens, documents), batch,
                                                 tokens, chunk(tokens), R, U)
                            : Layout(parse_order(options_.order), tokens, R, U);
  return std::make_unique<distributed::ContextPart>(mesh_, layout, scores,
                                                    parse_state(options_.state));
}

int64_t SequenceParts::chunk(int64_t tokens) const {
  const int64_t pieces = 4 * mesh_.sizes().ring;
  return options_.chunk > 0 ? options_.chunk : (tokens + pieces - 1) / pieces;
}

}  // namespace fovea::train
