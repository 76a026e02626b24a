// SPDX-License-Identifier: Apache-2.0
#include "nn/token_blocks.h"

#include <utility>

#include "autograd/ops.h"

namespace fovea::nn {
namespace {

thread_local int64_t t_tokens = 0;

bool is_block(const Variable& x) { return x.value().rank() == 2 && x.dim(0) == t_tokens; }

}  // namespace

TokenBlocks::TokenBlocks(int64_t tokens)
    : before_(std::exchange(t_tokens, tokens)), products_(tokens > 0) {}
TokenBlocks::~TokenBlocks() { t_tokens = before_; }
int64_t TokenBlocks::current() { return t_tokens; }

Variables by_blocks(const Variables& xs, const std::function<Variables(const Variables&)>& f) {
  if (t_tokens == 0 || is_block(xs[0])) return f(xs);
  const Shape& shape = xs[0].shape();
  std::vector<Variables> blocks;  // of each x
  for (const Variable& x : xs) {
    FOVEA_CHECK(x.value().rank() >= 2 && x.value().numel() / x.dim(-1) % t_tokens == 0,
                "token blocks: the rows of ", x.shape(), " are no multiple of ", t_tokens);
    blocks.push_back(split(reshape(x, {-1, x.dim(-1)}), 0, t_tokens));
  }
  std::vector<Variables> results;  // of each output
  for (size_t i = 0; i < blocks[0].size(); ++i) {
    Variables block;
    for (const Variables& x : blocks) block.push_back(x[i]);
    const Variables made = f(block);
    results.resize(made.size());
    for (size_t out = 0; out < made.size(); ++out) results[out].push_back(made[out]);
  }
  Variables joined;
  for (const Variables& result : results) {
    Shape whole = shape;
    whole[-1] = result[0].dim(-1);
    joined.push_back(reshape(concat(result, 0), whole));
  }
  return joined;
}

Variable by_blocks(const Variable& x, const std::function<Variable(const Variable&)>& f) {
  return by_blocks(Variables{x},
                   [&](const Variables& block) -> Variables { return {f(block[0])}; })[0];
}

}  // namespace fovea::nn
