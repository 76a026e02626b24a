// SPDX-License-Identifier: Apache-2.0
#include "nn/gpt.h"

#include <cmath>

#include "autograd/ops.h"
#include "nn/dropout.h"
#include "nn/embedding.h"
#include "nn/token_blocks.h"

namespace fovea::nn {

void GptOptions::describe(config::Fields& f) {
  TransformerOptions::describe(f);
  f.add("context", context, "longest sequence", config::from_to(1, 1 << 24), "tokens");
  f.add("positions", positions,
        "absolute positions added to the embedding; none when the attention brings its own",
        config::one_of({"learned", "sinusoidal", "none"}));
  f.add("tied_head", tied_head, "the output head is the token embedding");
}

Tensor sinusoidal_positions(int64_t positions, int64_t dim) {
  const Tensor table = Tensor::empty({positions, dim});
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t c = 0; c < dim; ++c) {
      const double angle =
          static_cast<double>(p) *
          std::pow(10000.0, -static_cast<double>(c - c % 2) / static_cast<double>(dim));
      table.data<float>()[p * dim + c] =
          static_cast<float>(c % 2 == 0 ? std::sin(angle) : std::cos(angle));
    }
  }
  return table;
}

int64_t GptState::bytes() const {
  int64_t total = 0;
  for (const auto& layer : layers) total += layer->bytes();
  return total;
}

Gpt::Gpt(const GptOptions& options, int64_t vocab, const MixerFactory& mixer)
    : options_(options), vocab_(vocab), blocks_(options, mixer) {
  FOVEA_CHECK(vocab >= 1, "gpt: expected a vocabulary of at least 1, found ", vocab);
  token_ = declare("token.weight", {vocab, options.dim}, Init::normal(0.02));
  if (options.positions == "learned")
    position_ = declare("position.weight", {options.context, options.dim}, Init::normal(0.02));
  if (options.positions == "sinusoidal")
    sinusoids_ = sinusoidal_positions(options.context, options.dim);
  declare_constant(sinusoids_);
  declare("blocks", blocks_);
  norm_ = make_norm(options);
  declare("norm", *norm_);
  if (!options.tied_head) {
    head_ = std::make_unique<Linear>(options.dim, vocab, false);
    declare("head", *head_);
  }
}

Variable Gpt::embed(const Tensor& ids, int64_t first, const SequencePart* part) const {
  FOVEA_CHECK(ids.rank() == 2, "gpt: expected token ids [B, N], found ", ids.shape());
  FOVEA_CHECK(part == nullptr || ids.dim(1) == part->tokens(), "gpt: ids ", ids.shape(),
              " of a part of ", part->tokens(), " tokens");
  const int64_t end = part != nullptr ? part->whole() : first + ids.dim(1);
  FOVEA_CHECK(end <= options_.context || options_.positions == "none", "gpt: ", end,
              " tokens, but the model was built for a context of ", options_.context);
  const Variable x = embedding(token_, ids);
  const Tensor& table = position_.defined() ? position_.value() : sinusoids_;
  if (part != nullptr && table.defined()) {
    // In blocks, those of each sample.
    const Tensor positions = TokenBlocks::current() > 0
                                 ? part->positions().expand(ids.shape()).contiguous()
                                 : part->positions();
    return add(
        x, embedding(position_.defined() ? position_ : Variable(table.to(x.dtype())), positions));
  }
  if (position_.defined()) return add(x, slice(position_, 0, first, end));
  if (sinusoids_.defined()) return add(x, Variable(sinusoids_.slice(0, first, end).to(x.dtype())));
  return x;
}

Variable Gpt::head(const Variable& h) const {
  return linear(h, head_ ? head_->weight : token_, Variable());
}

MixerContext Gpt::context_of(const Tensor& documents, const SequencePart* part) {
  MixerContext context;
  context.causal = true;
  context.documents = documents;
  context.part = part;
  return context;
}

Variable Gpt::forward(const Tensor& ids, const Tensor& documents, const SequencePart* part) {
  const MemoryLabel label(activations());
  const Residual stream =
      blocks_.forward(dropout(embed(ids, 0, part), options_.dropout, *this, part),
                      context_of(documents, part), compute_);
  return head(norm_->add_forward(stream.x, stream.delta, compute_)[1]);
}

GptState Gpt::make_state(int64_t batch, int64_t max_tokens) const {
  GptState state;
  state.batch = batch;
  state.capacity = max_tokens;
  state.layers = blocks_.make_states(batch, max_tokens);
  return state;
}

Tensor Gpt::decode(const Tensor& ids, GptState& state) const {
  const NoGrad no_grad;
  FOVEA_CHECK(ids.rank() == 2 && ids.dim(0) == state.batch && ids.dim(1) >= 1,
              "gpt: decode expected ids [", state.batch, ", n >= 1], found ", ids.shape());
  FOVEA_CHECK(state.tokens + ids.dim(1) <= state.capacity, "gpt: decoding ", ids.dim(1),
              " tokens after ", state.tokens, " passes the state's capacity of ", state.capacity);
  const Tensor x = blocks_.decode(embed(ids, state.tokens).value(), state.layers, compute_);
  state.tokens += ids.dim(1);
  const Tensor last =
      x.slice(1, ids.dim(1) - 1, ids.dim(1)).contiguous().view({state.batch, options_.dim});
  return head(norm_->forward(Variable(last), compute_)).value().to(Dtype::f32);
}

double Gpt::forward_flops(int64_t batch, int64_t tokens) const {
  return blocks_.forward_flops(batch, tokens) +
         2.0 * static_cast<double>(batch * tokens) * static_cast<double>(options_.dim * vocab_);
}

}  // namespace fovea::nn
