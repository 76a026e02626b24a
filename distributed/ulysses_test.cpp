// SPDX-License-Identifier: Apache-2.0
#include "distributed/ulysses.h"

#include "autograd/ops.h"
#include "core/testing/devices.h"
#include "distributed/state_cases.h"
#include "distributed/threads.h"

namespace fovea::distributed {
namespace {

using attention::normal;

std::vector<Shards> some_shards(int P) {
  std::vector<int64_t> ragged;
  for (int r = 0; r < P; ++r) ragged.push_back((r * 5 + 3) % 7);
  return {Shards::even(21, P), Shards(ragged), Shards::even(2, P)};
}
Variable part(const Variable& x, const Shards& shards, int rank) {
  return Variable(x.value().slice(1, shards.begin(rank), shards.end(rank)).contiguous(), true);
}

// q [B, N, H, D], k and v [B, N, G, D] -> [B, N, H, D], query head h with key head h G/H.
Variable attend(const Variable& q, const Variable& k, const Variable& v) {
  const int64_t B = q.dim(0), N = q.dim(1), H = q.dim(2), G = k.dim(2), D = q.dim(3);
  const auto for_queries = [&](const Variable& x) {
    return reshape(expand(reshape(x, {B, N, G, 1, D}), {B, N, G, H / G, D}), {B, N, H, D});
  };
  const auto by_head = [](const Variable& x) { return transpose(x, 1, 2); };
  return transpose(
      attention::linear_attention(by_head(q), by_head(for_queries(k)), by_head(for_queries(v)))[0],
      1, 2);
}

class UlyssesOver : public testing::TestWithParam<int> {};

TEST_P(UlyssesOver, HeadsApartAreTheWhole) {
  const int U = GetParam();
  const int64_t B = 2, H = 2 * U, D = 3;
  std::vector<int64_t> key_heads{H, U};  // multiples, and divisors
  for (int64_t G = 1; G < U; ++G)
    if (U % G == 0) key_heads.push_back(G);
  for (const int64_t G : key_heads) {
    for (const Shards& shards : some_shards(U)) {
      const int64_t N = shards.tokens();
      const Variable q(normal({B, N, H, D}, "q"), true), k(normal({B, N, G, D}, "k"), true),
          v(normal({B, N, G, D}, "v"), true);
      const Tensor dout = normal({B, N, H, D}, "dout");
      const Variable whole = attend(q, k, v);
      whole.backward(dout);
      run_ranks(U, [&](const Communicator& comm) {
        const int rank = comm.rank();
        const Variable own_q = part(q, shards, rank), own_k = part(k, shards, rank),
                       own_v = part(v, shards, rank);
        const Variable out =
            sequence_to_heads(attend(heads_to_sequence(own_q, shards, comm),
                                     heads_to_sequence(own_k, shards, comm, Heads::shared),
                                     heads_to_sequence(own_v, shards, comm, Heads::shared)),
                              shards, comm);
        const auto own = [&](const Tensor& x) {
          return x.slice(1, shards.begin(rank), shards.end(rank));
        };
        EXPECT_LT(worst(out.value(), own(whole.value())), 1e-13);
        out.backward(own(dout).contiguous());
        EXPECT_LT(worst(own_q.grad(), own(q.grad())), 1e-13);
        EXPECT_LT(worst(own_k.grad(), own(k.grad())), 1e-13);
        EXPECT_LT(worst(own_v.grad(), own(v.grad())), 1e-13);
      });
    }
  }
}

TEST_P(UlyssesOver, BytesAreTheTable) {
  const int64_t U = GetParam(), B = 2, n = 3, H = 2 * U, D = 4, N = U * n;
  for (const int64_t G : {int64_t{1}, U, 2 * U}) {
    run_ranks(GetParam(), [&](const Communicator& comm) {
      const Shards shards = Shards::even(N, GetParam());
      const Variable q(Tensor::zeros({B, n, H, D}), true), k(Tensor::zeros({B, n, G, D}), true),
          v(Tensor::zeros({B, n, G, D}), true);
      const int64_t bytes = (U - 1) * n * B * D * 4 * (2 * H + 2 * std::max(G, U)) / U;
      comm.reset_stats();
      const Variable out =
          sequence_to_heads(add(heads_to_sequence(q, shards, comm),
                                mul(sum_all(heads_to_sequence(k, shards, comm, Heads::shared)),
                                    sum_all(heads_to_sequence(v, shards, comm, Heads::shared)))),
                            shards, comm);
      EXPECT_EQ(comm.stats().total().bytes_sent, bytes);
      EXPECT_EQ(comm.stats()[Operation::all_to_all].calls, 4);
      comm.reset_stats();
      out.backward(Tensor::zeros(out.shape()));
      EXPECT_EQ(comm.stats().total().bytes_sent, bytes);
      EXPECT_EQ(comm.stats()[Operation::all_to_all].calls, 4);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Of, UlyssesOver, testing::Values(1, 2, 3, 4, 8),
                         testing::PrintToStringParamName());

TEST(Ulysses, HeadsThatDoNotDivideAreRefused) {
  const auto what = [](Heads heads, int64_t H) -> std::string {
    try {
      run_ranks(4, [&](const Communicator& comm) {
        const Variable x(Tensor::zeros({1, 2, H, 2}));
        heads_to_sequence(x, Shards::even(8, 4), comm, heads);
      });
    } catch (const Error& error) {
      const std::string text = error.what();
      return text.substr(text.find("ulysses"));
    }
    return "";
  };
  EXPECT_EQ(what(Heads::divided, 6), "ulysses: 6 heads are not divided by 4 ranks");
  EXPECT_EQ(what(Heads::divided, 2), "ulysses: 2 heads are not divided by 4 ranks");
  EXPECT_EQ(what(Heads::shared, 6),
            "ulysses: 6 key heads neither divide nor are divided by 4 ranks");
  EXPECT_EQ(what(Heads::shared, 2), "");
}

class UlyssesOn : public OnDevices {};

// One head for two ranks, and two; there and back.
TEST_P(UlyssesOn, HeadsCrossAndComeBack) {
  const Shards shards({2, 1});
  run_ranks(2, [&](const Communicator& comm) {
    const int64_t begin = shards.begin(comm.rank()), n = shards.length(comm.rank());
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      for (const int64_t H : {1, 2}) {
        std::vector<float> values;  // 10 head + token
        for (int64_t t = 0; t < n; ++t)
          for (int64_t h = 0; h < H; ++h) values.push_back(static_cast<float>(10 * h + begin + t));
        const Variable x(Tensor::from(values, {1, n, H, 1}).to(dtype).to(device()), true);
        const Variable y = heads_to_sequence(x, shards, comm, Heads::shared);
        const float head = H == 2 && comm.rank() == 1 ? 10.0f : 0.0f;
        EXPECT_EQ(y.value().to_vector<float>(), (std::vector<float>{head, head + 1, head + 2}));
        const Variable z = sequence_to_heads(y, shards, comm);
        EXPECT_EQ(z.dim(2), 2);
        z.backward(Tensor::full(z.shape(), 1.0, dtype, device()));
        EXPECT_EQ(x.grad().to_vector<float>(),
                  std::vector<float>(static_cast<size_t>(n * H), H == 1 ? 2.0f : 1.0f));
      }
    }
  });
}
FOVEA_ON_DEVICES(UlyssesOn);

}  // namespace
}  // namespace fovea::distributed
