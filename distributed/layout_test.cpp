// SPDX-License-Identifier: Apache-2.0
#include "distributed/layout.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

namespace fovea::distributed {
namespace {

const Order kOrders[] = {Order::contiguous, Order::striped, Order::zigzag};

Tensor numbers(int64_t N) {
  std::vector<int32_t> all(static_cast<size_t>(N));
  std::iota(all.begin(), all.end(), 0);
  return Tensor::from(all, {1, N});
}
std::vector<int32_t> held(const Layout& layout, int ring, int ulysses = 0) {
  return layout.take(numbers(layout.tokens()), 1, ring, ulysses).to_vector<int32_t>();
}

TEST(Layout, OrdersOfTwelveTokens) {
  using Tokens = std::vector<int32_t>;
  EXPECT_EQ(held(Layout(Order::contiguous, 12, 3), 1), (Tokens{4, 5, 6, 7}));
  EXPECT_EQ(held(Layout(Order::striped, 12, 3), 1), (Tokens{1, 4, 7, 10}));
  EXPECT_EQ(held(Layout(Order::zigzag, 12, 3), 1), (Tokens{2, 3, 8, 9}));
  EXPECT_EQ(held(Layout(Order::zigzag, 12, 3), 2), (Tokens{4, 5, 6, 7}));
  // Ragged: the first stretches are the longer ones.
  EXPECT_EQ(held(Layout(Order::zigzag, 9, 2), 0), (Tokens{0, 1, 2, 7, 8}));
  EXPECT_EQ(held(Layout(Order::striped, 7, 3), 0), (Tokens{0, 3, 6}));
  // Groups of ranks cut their shard, across its stretches.
  EXPECT_EQ(held(Layout(Order::zigzag, 12, 2, 2), 0, 0), (Tokens{0, 1, 2}));
  EXPECT_EQ(held(Layout(Order::zigzag, 16, 2, 3), 0, 1), (Tokens{3, 12, 13}));
  EXPECT_EQ(held(Layout(Order::striped, 12, 2, 2), 1, 1), (Tokens{7, 9, 11}));
}

TEST(Layout, EveryTokenIsHeldOnce) {
  for (const Order order : kOrders) {
    for (const int64_t N : {0, 1, 3, 16, 33}) {
      for (const auto& [R, U] : {std::pair{1, 1}, {1, 3}, {3, 1}, {4, 2}, {8, 1}}) {
        const Layout layout(order, N, R, U);
        const Tensor whole = Tensor::full({1, N}, -1.0, Dtype::i32);
        std::set<int32_t> seen;
        int64_t count = 0;
        for (int r = 0; r < R; ++r) {
          EXPECT_LE(layout.group(r).size(), 2u);
          EXPECT_LE(layout.most_tokens() - layout.group_tokens(r), 2);
          for (int u = 0; u < U; ++u) {
            const auto tokens = held(layout, r, u);
            EXPECT_EQ(static_cast<int64_t>(tokens.size()), layout.shards(r).length(u));
            seen.insert(tokens.begin(), tokens.end());
            count += static_cast<int64_t>(tokens.size());
            layout.put(whole, 1, layout.take(numbers(N), 1, r, u), r, u);
          }
        }
        EXPECT_EQ(count, N);
        EXPECT_EQ(static_cast<int64_t>(seen.size()), N);
        EXPECT_EQ(whole.to_vector<int32_t>(), numbers(N).to_vector<int32_t>());
      }
    }
  }
}

TEST(Layout, BalanceOfACausalMask) {
  const auto of = [](Order order) {
    return balance(Layout(order, 48, 4), attention::Mask().causal());
  };
  // 48 x 49 / 2 pairs; the last of four contiguous shards has 12 x (37 + 48) / 2 of them.
  EXPECT_DOUBLE_EQ(of(Order::contiguous).total, 510.0 / 294.0);
  EXPECT_DOUBLE_EQ(of(Order::striped).total, 4.0 * 13.0 / 49.0);
  EXPECT_DOUBLE_EQ(of(Order::zigzag).total, 1.0);
  for (const auto& [order, stepwise] :
       {std::pair{Order::contiguous, 1.735}, {Order::striped, 1.061}, {Order::zigzag, 1.0}}) {
    EXPECT_NEAR(of(order).total, stepwise, 5e-4) << name(order);
    EXPECT_NEAR(of(order).stepwise, stepwise, 5e-4) << name(order);
  }
  EXPECT_DOUBLE_EQ(balance(Layout(Order::contiguous, 48, 4), attention::Mask()).total, 1.0);
}

// Documents of one shard each leave a ring's other steps without work.
TEST(Layout, BalanceOfDocuments) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 16; ++i) ids.push_back(i / 4);
  const Tensor documents = Tensor::from(ids, {1, 16});
  const attention::Mask mask = attention::Mask().documents(documents, documents);
  const Balance each = balance(Layout(Order::contiguous, 16, 4), mask);
  EXPECT_DOUBLE_EQ(each.total, 1.0);
  EXPECT_DOUBLE_EQ(each.stepwise, 1.0);
  const Tensor one = Tensor::full({1, 16}, -1.0, Dtype::i32);
  one.slice(1, 0, 4).fill_(0.0);
  EXPECT_DOUBLE_EQ(
      balance(Layout(Order::contiguous, 16, 4), attention::Mask().documents(one, one)).total, 4.0);
}

TEST(Layout, DispatchedChunksBalanceAnyMask) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 96; ++i) ids.push_back(i < 50 ? 0 : i < 60 ? 1 : i < 90 ? 2 : 3);
  const Tensor documents = Tensor::from(ids, {1, 96});
  const attention::Mask mask = attention::Mask().causal().documents(documents, documents);
  const Layout layout = Layout::dispatched(mask, 1, 96, 4, 4);
  EXPECT_LT(balance(layout, mask).total, 1.05);
  EXPECT_GT(balance(Layout(Order::contiguous, 96, 4), mask).total, 1.5);
  EXPECT_GT(balance(Layout(Order::zigzag, 96, 4), mask).total, 1.15);
  for (int r = 0; r < 4; ++r) EXPECT_EQ(layout.group_tokens(r), 24);
  // The last chunk may be short, and ranks may have none.
  for (const auto& [N, chunk, ring] : {std::tuple{33, 4, 3}, {5, 2, 4}, {0, 1, 2}, {7, 100, 2}}) {
    const Layout ragged = Layout::dispatched(attention::Mask().causal(), 1, N, chunk, ring);
    const Tensor whole = Tensor::full({1, N}, -1.0, Dtype::i32);
    for (int r = 0; r < ring; ++r) ragged.put(whole, 1, ragged.take(numbers(N), 1, r), r);
    EXPECT_EQ(whole.to_vector<int32_t>(), numbers(N).to_vector<int32_t>());
  }
  EXPECT_THROW(Layout(Order::dispatched, 8, 2), Error);
}

}  // namespace
}  // namespace fovea::distributed
