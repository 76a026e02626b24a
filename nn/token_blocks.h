// SPDX-License-Identifier: Apache-2.0
#pragma once
// Work in blocks of tokens. The rounding of a product, and of the gradient of its weight, depends
// on how many rows it has. While a TokenBlocks lives on this thread, layers with parameters
// (linear, norm, embedding, the GELU MLP) take their rows in blocks of so many tokens of one
// sequence, each with a call, and a gradient of every parameter, of its own. What a block gives is
// then the same whoever computes it, and which blocks a rank has changes no bit
// (docs/data_parallel.md).

#include <functional>

#include "autograd/variable.h"
#include "core/ops/matmul.h"

namespace fovea::nn {

class TokenBlocks {
 public:
  explicit TokenBlocks(int64_t tokens);  // 0: none, rows at once
  ~TokenBlocks();
  TokenBlocks(const TokenBlocks&) = delete;
  TokenBlocks& operator=(const TokenBlocks&) = delete;

  // Of the innermost one alive on this thread; 0: none.
  static int64_t current();

 private:
  int64_t before_;
  FixedProducts products_;
};

// f(xs), or joined from the results for blocks [tokens, C] of xs [..., C] where a TokenBlocks is
// alive: rows in order, a multiple of its tokens.
Variables by_blocks(const Variables& xs, const std::function<Variables(const Variables&)>& f);
Variable by_blocks(const Variable& x, const std::function<Variable(const Variable&)>& f);

}  // namespace fovea::nn
