// SPDX-License-Identifier: Apache-2.0
#include "distributed/context_part.h"

#include "autograd/ops.h"
#include "distributed/halo.h"

namespace fovea::distributed {
namespace {

using attention::Sees;

std::vector<nn::SequencePart::Run> runs_of(const Mesh& mesh, const Layout& layout) {
  std::vector<nn::SequencePart::Run> runs;
  for (const auto& [place, count] : layout.rank(mesh.place().ring, mesh.place().ulysses))
    runs.push_back({place.base, place.stride, count});
  return runs;
}

class SumFn final : public Function {
 public:
  explicit SumFn(Communicator comm) : comm_(std::move(comm)) {}
  const char* name() const override { return "sum_over_parts"; }
  Tensor forward(const Tensor& x) { return sum(x); }
  Tensors backward(const Tensors& dout) override { return {sum(dout[0])}; }

 private:
  Tensor sum(const Tensor& x) const {
    const Tensor total = x.contiguous().clone();
    comm_.all_reduce(total).wait();
    return total;
  }
  const Communicator comm_;
};

}  // namespace

ContextPart::ContextPart(const Mesh& mesh, const Layout& layout, const ContextOptions& scores,
                         const StateOptions& states)
    : OverParts(layout.tokens(), runs_of(mesh, layout)),
      place_(mesh.place()),
      ring_(mesh.ring()),
      ulysses_(mesh.ulysses()),
      context_(mesh.context()),
      attention_(mesh.ring(), mesh.ulysses(), layout, scores),
      states_(states) {}

Tensor ContextPart::take(const Tensor& whole, int axis) const {
  return layout().take(whole, axis, place_.ring, place_.ulysses);
}

Variable ContextPart::summed(const Variable& x) const { return record(make<SumFn>(context_), x); }

// ---- what layers see ----------------------------------------------------------------------------

Variable ContextPart::attend(const ScoreRule& rule, const Variable& q, const Variable& k,
                             const Variable& v, const Variable& sink, const Tensor& slopes,
                             const attention::Mask& mask,
                             const attention::ScoreOptions& options) const {
  return attention_(rule, q, k, v, sink, slopes, mask, options);
}

Variable ContextPart::linear_attention(const Variable& q, const Variable& k, const Variable& v,
                                       const Variable& g, const Variable& state,
                                       const Tensor& starts) const {
  const Variable before = ring_.rank() == 0 ? heads_of(state, 1) : Variable();
  return from_group(distributed::linear_attention(to_group(q), to_group(k), to_group(v),
                                                  gate_to_group(g), before, starts_of_group(starts),
                                                  ring_, states_)[0]);
}

Variable ContextPart::delta_rule(const Variable& q, const Variable& k, const Variable& v,
                                 const Variable& beta, const Variable& g, const Variable& state,
                                 const Tensor& starts) const {
  const Variable before = ring_.rank() == 0 ? heads_of(state, 1) : Variable();
  return from_group(distributed::delta_rule(to_group(q), to_group(k), to_group(v),
                                            gate_to_group(beta), gate_to_group(g), before,
                                            starts_of_group(starts), ring_, states_)[0]);
}

Variable ContextPart::with_tokens_before(const Variable& x, int axis, int64_t count,
                                         attention::Edge edge) const {
  std::vector<int64_t> lengths;
  for (int r = 0; r < ring_.size(); ++r)
    for (int u = 0; u < ulysses_.size(); ++u) lengths.push_back(layout().shards(r).length(u));
  return halo(x, axis, count, Shards(lengths), context_, edge);
}

Variable ContextPart::by_heads(const Variables& x, const attention::OfHeads& f) const {
  Variables whole;
  for (const Variable& each : x)
    whole.push_back(to_group(each, whole.empty() ? Heads::divided : Heads::shared));
  return from_group(f(whole, ulysses_.rank() * (x[0].dim(1) / ulysses_.size())));
}

// ---- heads of a group ---------------------------------------------------------------------------

Variable ContextPart::to_group(const Variable& x, Heads heads) const {
  if (ulysses_.size() == 1) return x;
  return transpose(
      heads_to_sequence(transpose(x, 1, 2), layout().shards(place_.ring), ulysses_, heads), 1, 2);
}

Variable ContextPart::from_group(const Variable& x) const {
  if (ulysses_.size() == 1) return x;
  return transpose(sequence_to_heads(transpose(x, 1, 2), layout().shards(place_.ring), ulysses_), 1,
                   2);
}

Variable ContextPart::heads_of(const Variable& x, int axis) const {
  if (!x.defined() || ulysses_.size() == 1) return x;
  const int64_t h = x.dim(axis) / ulysses_.size();
  return slice(x, axis, ulysses_.rank() * h, (ulysses_.rank() + 1) * h);
}

Variable ContextPart::gate_to_group(const Variable& g) const {
  if (!g.defined() || ulysses_.size() == 1) return g;
  if (g.shape().rank() == 1) return heads_of(g, 0);
  if (g.shape().rank() == 4) return to_group(g);
  const Variable group = to_group(reshape(g, {g.dim(0), g.dim(1), g.dim(2), 1}));
  return reshape(group, {group.dim(0), group.dim(1), group.dim(2)});
}

Tensor ContextPart::starts_of_group(const Tensor& starts) const {
  if (!starts.defined()) return starts;
  int64_t first = 0;
  for (int r = 0; r < place_.ring; ++r) first += layout().group_tokens(r);
  return starts.slice(1, first, first + layout().group_tokens(place_.ring)).contiguous();
}

// ---- refusals -----------------------------------------------------------------------------------

std::string ContextPart::refuses(Sees how, int64_t heads, int64_t kv_heads) const {
  const int64_t R = ring_.size(), U = ulysses_.size();
  if ((how == Sees::state || how == Sees::before) && R > 1 && layout().order() != Order::contiguous)
    return concat(how == Sees::state ? "hands states on" : "sees the tokens before its own",
                  " and needs mesh.order = contiguous, found ", name(layout().order()));
  if (how == Sees::heads && R > 1)
    return concat("sees whole sequences of some heads and needs mesh.ring = 1, found ", R,
                  "; mesh.ulysses takes the ranks");
  if (how == Sees::before) return "";
  if (heads % U != 0) return concat("has ", heads, " heads, which ulysses ", U, " does not divide");
  if (kv_heads % U != 0 && U % kv_heads != 0)
    return concat("has ", kv_heads, " key heads, which neither divide nor are divided by ulysses ",
                  U);
  return "";
}

}  // namespace fovea::distributed
