// SPDX-License-Identifier: Apache-2.0
#include "distributed/halo.h"

#include "autograd/ops.h"
#include "core/testing/devices.h"
#include "distributed/state_cases.h"
#include "distributed/threads.h"

namespace fovea::distributed {
namespace {

using attention::normal;

constexpr int64_t kB = 2, kC = 3;

// Even, ragged with an empty shard, all tokens on the last rank, and fewer tokens than ranks.
std::vector<Shards> some_shards(int P) {
  std::vector<int64_t> ragged, late(static_cast<size_t>(P), 0);
  for (int r = 0; r < P; ++r) ragged.push_back((r * 5 + 3) % 7);
  late.back() = 9;
  return {Shards::even(23, P), Shards(ragged), Shards(late), Shards::even(3, P)};
}

// x [B, W - 1 + n, C], w [C, W], ids [B, W - 1 + n] -> [B, n, C]:
// out_t = sum_d w[:, W - 1 - d] x_(t - d) within documents.
Variable causal_conv(const Variable& x, const Variable& w, const std::vector<int64_t>& ids) {
  const int64_t N = x.dim(1), W = w.dim(1), before = W - 1, n = N - before;
  Variable out;
  for (int64_t d = 0; d < W; ++d) {
    std::vector<double> same;
    for (int64_t b = 0; b < kB; ++b)
      for (int64_t t = before; t < N; ++t)
        same.push_back(ids[static_cast<size_t>(b * N + t)] ==
                       ids[static_cast<size_t>(b * N + t - d)]);
    const Variable tap =
        mul(slice(x, 1, before - d, before - d + n), reshape(slice(w, 1, W - 1 - d, W - d), {kC}));
    const Variable seen = mul(tap, Variable(Tensor::from(same, {kB, n, 1})));
    out = out.defined() ? add(out, seen) : seen;
  }
  return out;
}

// Of tokens before the sequence there are none: W - 1 zeros of no document.
Variable whole_conv(const Variable& x, const Variable& w, const std::vector<int64_t>& ids) {
  const int64_t W = w.dim(1), N = x.dim(1);
  std::vector<int64_t> padded;
  for (int64_t b = 0; b < kB; ++b) {
    padded.insert(padded.end(), static_cast<size_t>(W - 1), -1);
    padded.insert(padded.end(), ids.begin() + b * N, ids.begin() + (b + 1) * N);
  }
  const Variable zeros(Tensor::zeros({kB, W - 1, kC}, Dtype::f64));
  return causal_conv(concat({zeros, x}, 1), w, padded);
}

class Halos : public testing::TestWithParam<int> {};

TEST_P(Halos, CausalConvolutionOfShardsIsTheWhole) {
  for (const Shards& shards : some_shards(GetParam())) {
    for (const int64_t W : {1, 2, 4, 7}) {
      const int64_t N = shards.tokens();
      std::vector<int64_t> ids;
      for (int64_t i = 0; i < kB * N; ++i) ids.push_back((i % N + i / N) / 5);
      const Tensor dout = normal({kB, N, kC}, "dout");
      const Variable x(normal({kB, N, kC}, "x"), true), w(normal({kC, W}, "w"), true);
      const Variable whole = whole_conv(x, w, ids);
      whole.backward(dout);
      run_ranks(GetParam(), [&](const Communicator& comm) {
        const int64_t begin = shards.begin(comm.rank()), end = shards.end(comm.rank());
        const Variable part(x.value().slice(1, begin, end).contiguous(), true),
            weight(w.value(), true);
        const Tensor own = Tensor::from(ids, {kB, N}).slice(1, begin, end);
        const Variable around = halo(part, 1, W - 1, shards, comm);
        const Variable out =
            causal_conv(around, weight, halo(own, 1, W - 1, shards, comm).to_vector<int64_t>());
        EXPECT_LT(worst(out.value(), whole.value().slice(1, begin, end)), 1e-14);
        out.backward(dout.slice(1, begin, end).contiguous());
        EXPECT_LT(worst(part.grad(), x.grad().slice(1, begin, end)), 1e-14);
        const Tensor dw = weight.grad().clone();
        comm.all_reduce(dw).wait();
        EXPECT_LT(worst(dw, w.grad()), 1e-13);
      });
    }
  }
}

// out_i = sum over j with i - l <= j <= i of (q_i . k_j) v_j, keys numbered from `first`.
Variable windowed(const Variable& q, const Variable& k, const Variable& v, int64_t first_query,
                  int64_t first_key, int64_t l) {
  std::vector<double> seen;
  for (int64_t i = first_query; i < first_query + q.dim(1); ++i)
    for (int64_t j = first_key; j < first_key + k.dim(1); ++j)
      seen.push_back(j <= i && i - j <= l ? 1.0 : 0.0);
  const Variable mask(Tensor::from(seen, {1, q.dim(1), k.dim(1)}));
  return matmul(mul(matmul(q, transpose(k, 1, 2)), mask), v);
}

TEST_P(Halos, KeysOfAWindowAreBorrowed) {
  for (const Shards& shards : some_shards(GetParam())) {
    for (const int64_t l : {0, 3, 100}) {
      const int64_t N = shards.tokens();
      const Tensor dout = normal({kB, N, kC}, "dout");
      const auto leaf = [&](const char* name) { return Variable(normal({kB, N, kC}, name), true); };
      const Variable q = leaf("q"), k = leaf("k"), v = leaf("v");
      const Variable whole = windowed(q, k, v, 0, 0, l);
      whole.backward(dout);
      run_ranks(GetParam(), [&](const Communicator& comm) {
        const int64_t begin = shards.begin(comm.rank()), end = shards.end(comm.rank());
        const auto part = [&](const Variable& x) {
          return Variable(x.value().slice(1, begin, end).contiguous(), true);
        };
        const Variable own_q = part(q), own_k = part(k), own_v = part(v);
        const Variable keys = halo(own_k, -2, l, shards, comm, Edge::absent);
        const Variable values = halo(own_v, 1, l, shards, comm, Edge::absent);
        EXPECT_EQ(keys.dim(1), begin == end ? 0 : end - std::max<int64_t>(0, begin - l));
        const Variable out = windowed(own_q, keys, values, begin, end - keys.dim(1), l);
        EXPECT_LT(worst(out.value(), whole.value().slice(1, begin, end)), 1e-13);
        out.backward(dout.slice(1, begin, end).contiguous());
        for (const auto& [own, all] :
             {std::pair{own_q, q}, std::pair{own_k, k}, std::pair{own_v, v}})
          EXPECT_LT(worst(own.grad(), all.grad().slice(1, begin, end)), 1e-13);
      });
    }
  }
}

TEST_P(Halos, BytesAreTheTable) {
  const int P = GetParam();
  run_ranks(P, [&](const Communicator& comm) {
    const auto sent = [&](int64_t n, int64_t left, bool back) {
      const Shards shards = Shards::of(n, comm);
      const Variable x(Tensor::zeros({kB, n, kC}), true);
      comm.reset_stats();
      const Variable y = halo(x, 1, left, shards, comm);
      if (back) {
        comm.reset_stats();
        y.backward(Tensor::zeros(y.shape()));
      }
      EXPECT_EQ(comm.stats().total().calls, 1);
      return comm.stats().total().bytes_sent;
    };
    const int64_t a_token = kB * kC * 4, r = comm.rank();
    EXPECT_EQ(sent(5, 4, false), r == P - 1 ? 0 : 4 * a_token);
    EXPECT_EQ(sent(5, 4, true), r == 0 ? 0 : 4 * a_token);
    // One token a rank: to each of the next three, and to each of the last three.
    EXPECT_EQ(sent(1, 3, false), std::min<int64_t>(3, P - 1 - r) * a_token);
    EXPECT_EQ(sent(1, 3, true), std::min<int64_t>(3, r) * a_token);
  });
}

INSTANTIATE_TEST_SUITE_P(Of, Halos, testing::Values(1, 2, 3, 4, 8),
                         testing::PrintToStringParamName());

TEST(Halos, AShardOfAnotherLengthIsRefused) {
  const Variable x(Tensor::zeros({1, 3, 2}));
  try {
    halo(x, 1, 2, Shards::even(4, 1), Communicator());
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "halo: rank 0 gives 3 tokens, its shard has 4");
  }
}

class HalosOn : public OnDevices {};

TEST_P(HalosOn, TokensAndTheirGradientsCross) {
  const Shards shards({2, 1, 3});
  run_ranks(3, [&](const Communicator& comm) {
    const int64_t begin = shards.begin(comm.rank()), n = shards.length(comm.rank());
    std::vector<float> values;
    for (int64_t t = begin; t < begin + n; ++t) values.push_back(static_cast<float>(t + 1));
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Variable x(Tensor::from(values, {1, n, 1}).to(dtype).to(device()), true);
      const Variable y = halo(x, 1, 3, shards, comm);
      for (int64_t i = 0; i < 3 + n; ++i)
        EXPECT_EQ(y.value().to_vector<float>()[static_cast<size_t>(i)],
                  std::max<int64_t>(0, begin - 3 + i + 1));
      y.backward(Tensor::full(y.shape(), 1.0, dtype, device()));
      // Who reads token t: its owner, and later ranks that begin within 3 of it.
      std::vector<float> readers;
      for (int64_t t = begin; t < begin + n; ++t) {
        float count = 1.0f;
        for (int r = comm.rank() + 1; r < 3; ++r) count += shards.begin(r) - t <= 3 ? 1.0f : 0.0f;
        readers.push_back(count);
      }
      EXPECT_EQ(x.grad().to_vector<float>(), readers);
    }
  });
}
FOVEA_ON_DEVICES(HalosOn);

}  // namespace
}  // namespace fovea::distributed
