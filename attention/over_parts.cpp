// SPDX-License-Identifier: Apache-2.0
#include "attention/over_parts.h"

#include "attention/score/softmax.h"
#include "autograd/ops.h"

namespace fovea::attention {
namespace {

const OverParts& over(const nn::SequencePart& part) {
  const auto* parts = dynamic_cast<const OverParts*>(&part);
  FOVEA_CHECK(parts != nullptr,
              "attention: a part of a sequence that does not say how layers see the rest of it");
  return *parts;
}

// Of a part in one stretch: its first token.
int64_t first_token(const nn::SequencePart& part) {
  FOVEA_CHECK(part.runs().size() <= 1 && (part.runs().empty() || part.runs()[0].stride == 1),
              "attention: tokens before a part of ", part.runs().size(),
              " stretches; expected one, of neighbours");
  return part.runs().empty() ? 0 : part.runs()[0].first;
}

}  // namespace

std::string refusal(const nn::SequencePart& part, const std::vector<Sees>& needs, int64_t heads,
                    int64_t kv_heads) {
  const auto* parts = dynamic_cast<const OverParts*>(&part);
  if (parts == nullptr) return "needs to be told how to see the rest of a sequence";
  std::string why;
  for (const Sees how : needs)
    if (why.empty()) why = parts->refuses(how, heads, kv_heads > 0 ? kv_heads : heads);
  return why;
}

Variable attend(const nn::SequencePart* part, const ScoreRule& rule, const Variable& q,
                const Variable& k, const Variable& v, const Variable& sink, const Tensor& slopes,
                const Mask& mask, const ScoreOptions& options) {
  return part != nullptr ? over(*part).attend(rule, q, k, v, sink, slopes, mask, options)
                         : score_attention(rule, q, k, v, sink, slopes, mask, options);
}

Variable linear_attention(const nn::SequencePart* part, const Variable& q, const Variable& k,
                          const Variable& v, const Variable& g, const Variable& state,
                          const Tensor& starts) {
  const Tensor there = starts.to(q.value().device());
  return part != nullptr ? over(*part).linear_attention(q, k, v, g, state, there)
                         : linear_attention(q, k, v, g, state, there)[0];
}

Variable delta_rule(const nn::SequencePart* part, const Variable& q, const Variable& k,
                    const Variable& v, const Variable& beta, const Variable& g,
                    const Variable& state, const Tensor& starts) {
  const Tensor there = starts.to(q.value().device());
  return part != nullptr ? over(*part).delta_rule(q, k, v, beta, g, state, there)
                         : delta_rule(q, k, v, beta, g, state, there)[0];
}

Variable with_tokens_before(const nn::SequencePart* part, const Variable& x, int axis,
                            int64_t count, Edge edge) {
  FOVEA_CHECK(count >= 0, "attention: ", count, " tokens before a part; expected 0 or more");
  if (part != nullptr) return over(*part).with_tokens_before(x, axis, count, edge);
  if (edge == Edge::absent || count == 0) return x;
  Shape shape = x.shape();
  shape[axis] = count;
  return concat({Variable(Tensor::zeros(shape, x.dtype(), x.value().device())), x}, axis);
}

Tensor documents_before(const nn::SequencePart* part, const Tensor& documents, int64_t count,
                        Edge edge) {
  const int64_t first = part != nullptr ? first_token(*part) : 0,
                n = part != nullptr ? part->tokens() : documents.dim(1),
                there = n == 0 ? 0 : std::min(count, first),
                pad = edge == Edge::zeros ? count - there : 0, B = documents.dim(0);
  const Tensor ids = Tensor::full({B, pad + there + n}, -1.0, documents.dtype());
  ids.slice(1, pad, pad + there + n).copy_(documents.slice(1, first - there, first + n));
  return ids;
}

Variable by_heads(const nn::SequencePart* part, const Variables& x, const OfHeads& f) {
  return part != nullptr ? over(*part).by_heads(x, f) : f(x, 0);
}

}  // namespace fovea::attention
