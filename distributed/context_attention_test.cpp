// SPDX-License-Identifier: Apache-2.0
#include "distributed/context_attention.h"

#include "attention/long_context_cases.h"
#include "core/testing/devices.h"
#include "distributed/context_cases.h"
#include "distributed/threads.h"

namespace fovea::distributed {
namespace {

class Context : public testing::TestWithParam<int> {};

// f(mesh, order, options) on every rank, in every order and by every exchange.
template <typename F>
void in_every_way(const MeshSizes& sizes, F&& f) {
  run_ranks(sizes.ranks(), [&](const Communicator& world) {
    const Mesh mesh(world, sizes);
    for (const Order order : kOrders) {
      for (const ContextOptions& options : all_options(sizes.ring)) f(mesh, order, options);
    }
  });
}

TEST_P(Context, EveryMaskInEveryLayoutIsTheWhole) {
  for (const MeshSizes& sizes : meshes(GetParam())) {
    const auto [H, G] = heads_for(sizes.ulysses);
    for (const NamedMask& named : masks(2, H, 33)) {
      SCOPED_TRACE(named.name);
      const ContextCase p = context_case(2, H, G, 33, named.mask);
      const ContextResults whole = whole_of(p);
      in_every_way(sizes, [&](const Mesh& mesh, Order order, const ContextOptions& options) {
        compare_to_whole(mesh, order, options, p, whole, Dtype::f64, kCpu, 1e-12);
      });
    }
  }
}

// Many stretches a rank.
TEST_P(Context, DispatchedChunksAreTheWhole) {
  for (const MeshSizes& sizes : meshes(GetParam())) {
    const auto [H, G] = heads_for(sizes.ulysses);
    for (const NamedMask& named : masks(2, H, 33)) {
      SCOPED_TRACE(named.name);
      const ContextCase p = context_case(2, H, G, 33, named.mask);
      const ContextResults whole = whole_of(p);
      const Layout layout = Layout::dispatched(named.mask, 2, 33, 3, sizes.ring, sizes.ulysses);
      run_ranks(GetParam(), [&](const Communicator& world) {
        const Mesh mesh(world, sizes);
        for (const ContextOptions& options : all_options(sizes.ring))
          compare_to_whole(mesh, layout, options, p, whole, Dtype::f64, kCpu, 1e-12);
      });
    }
  }
}

// Of every mask of 2510.17896, from an independent reference that knows no ranks.
TEST_P(Context, GoldenFilesHoldOnEveryMesh) {
  for (const attention::LongContextCase& golden : attention::long_context_cases()) {
    SCOPED_TRACE(golden.name);
    const ContextCase p{golden.q, golden.k, golden.v,    golden.dout,
                        Tensor(), Tensor(), golden.mask, {}};
    const ContextResults whole{golden.out, golden.dq, golden.dk, golden.dv, Tensor()};
    for (const MeshSizes& sizes : meshes(GetParam())) {
      const int64_t U = sizes.ulysses, G = golden.k.dim(1);
      if (golden.q.dim(1) % U != 0 || (G % U != 0 && U % G != 0)) continue;
      in_every_way(sizes, [&](const Mesh& mesh, Order order, const ContextOptions& options) {
        compare_to_whole(mesh, order, options, p, whole, Dtype::f64, kCpu, 1e-9);
        compare_to_whole(mesh, order, options, p, whole, Dtype::f32, kCpu, 1e-5);
      });
      const Layout dispatched = Layout::dispatched(golden.mask, golden.q.dim(0), golden.q.dim(2), 3,
                                                   sizes.ring, sizes.ulysses);
      run_ranks(sizes.ranks(), [&](const Communicator& world) {
        const Mesh mesh(world, sizes);
        for (const ContextOptions& options : {ContextOptions{}, ContextOptions{Exchange::gather}})
          compare_to_whole(mesh, dispatched, options, p, whole, Dtype::f64, kCpu, 1e-9);
      });
    }
  }
}

TEST_P(Context, SizesAndTypes) {
  for (const MeshSizes& sizes : meshes(GetParam())) {
    const auto [H, G] = heads_for(sizes.ulysses);
    for (const int64_t N : {0, 1, 3, 16}) {
      const ContextCase p = context_case(1, H, G, N, Mask().causal());
      const ContextResults whole = whole_of(p);
      in_every_way(sizes, [&](const Mesh& mesh, Order order, const ContextOptions& options) {
        compare_to_whole(mesh, order, options, p, whole, Dtype::f64, kCpu, 1e-12);
        if (N > 1) compare_to_whole(mesh, order, options, p, whole, Dtype::f32, kCpu, 1e-5);
      });
    }
  }
}

// Positions, heads and dropout are the whole's; a sink is one key of all.
TEST_P(Context, WhatCountsTokensCountsThemInTheWhole) {
  for (const MeshSizes& sizes : meshes(GetParam())) {
    const auto [H, G] = heads_for(sizes.ulysses);
    ContextCase p = context_case(2, H, G, 33, Mask().causal().window(20, -1));
    p.sink = random_tensor({H}, "sink");
    p.slopes = attention::alibi_slopes(H);
    p.options.rope = attention::Rope::half;
    p.options.softcap = 3.0;
    p.options.dropout = 0.3;
    p.options.rng = RngKey(1, "dropout", "x");
    p.options.first_sample = 5;
    const ContextResults whole = whole_of(p);
    in_every_way(sizes, [&](const Mesh& mesh, Order order, const ContextOptions& options) {
      compare_to_whole(mesh, order, options, p, whole, Dtype::f64, kCpu, 1e-11);
      compare_to_whole(mesh, order, options, p, whole, Dtype::f32, kCpu, 1e-5);
    });
  }
}

TEST_P(Context, RulesWithoutARunningMaximumAdd) {
  for (const ScoreRule* rule : {&attention::kSigmoidRule, &attention::kSquaredReluRule}) {
    ContextCase p = context_case(1, 4, 2, 19, Mask().causal());
    p.rule = rule;
    const ContextResults whole = whole_of(p);
    run_ranks(GetParam(), [&](const Communicator& world) {
      const Mesh mesh(world, {1, GetParam(), 1});
      for (const ContextOptions& options : all_options(GetParam()))
        compare_to_whole(mesh, Order::zigzag, options, p, whole, Dtype::f64, kCpu, 1e-12);
    });
  }
}

TEST_P(Context, BytesAreTheTable) {
  const int64_t B = 2, D = 4, Dv = 6, P = GetParam();
  for (const MeshSizes& sizes : meshes(GetParam())) {
    const int64_t R = sizes.ring, U = sizes.ulysses;
    const auto [H, G] = heads_for(sizes.ulysses);
    const int64_t N = 6 * P, n = N / R, G_here = U == 1 ? G : std::max(G, U) / U;
    const ContextCase p = context_case(B, H, G, N, Mask().causal());
    run_ranks(GetParam(), [&, H = H, G = G](const Communicator& world) {
      const Mesh mesh(world, sizes);
      for (const Order order : kOrders) {
        for (const ContextOptions& options : all_options(sizes.ring)) {
          const ContextAttention attend(mesh, order, N, options);
          OneRank(attend, mesh.place().ring, mesh.place().ulysses, p, Dtype::f32,
                  kCpu);  // the ranks agree
          const int64_t w = options.window > 0 ? options.window : R,
                        shard = B * n * G_here * (D + Dv),
                        keys = (R - 1) * shard * 2,  // bf16
              heads = (U - 1) * (n / U) * B * (H * (D + Dv) + std::max(G, U) * (D + Dv)) * 2 / U;
          int64_t sums = (R - 1) * shard * 4;
          if (options.exchange == Exchange::ring)
            sums = ((w > 1 ? R : 0) + (w < R ? R / w : 0)) * shard * 4;
          const auto expect = [&](int64_t in_ring, const char* when) {
            EXPECT_EQ(mesh.ring().stats().total().bytes_sent, in_ring)
                << when << ", exchange " << static_cast<int>(options.exchange) << ", window "
                << options.window << ", ring " << R;
            EXPECT_EQ(mesh.ulysses().stats().total().bytes_sent, heads) << when;
            mesh.ring().reset_stats();
            mesh.ulysses().reset_stats();
          };
          mesh.ring().reset_stats();
          mesh.ulysses().reset_stats();
          const OneRank rank(attend, mesh.place().ring, mesh.place().ulysses, p, Dtype::bf16, kCpu);
          expect(keys, "forward");
          rank.backward();
          expect(keys + sums, "backward");
        }
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Of, Context, testing::Values(1, 2, 3, 4, 8),
                         testing::PrintToStringParamName());

// What a constructor or a call says on rank 0 of a ring of R and groups of U.
std::string refusal(int R, int U, const std::function<void(const Mesh&)>& f) {
  try {
    run_ranks(R * U, [&](const Communicator& world) {
      world.set_time_limit(20.0);
      f(Mesh(world, {1, R, U}));
    });
  } catch (const Error& error) {
    const std::string text = error.what(), here = "context attention: ";
    const size_t at = text.find(here);
    return at == std::string::npos ? text : text.substr(at + here.size());
  }
  return "";
}
void call(const Mesh& mesh, int64_t H, int64_t G, int64_t n, const Mask& mask = Mask(),
          int64_t N = 8) {
  const Variable q(Tensor::zeros({1, H, n, 2})), k(Tensor::zeros({1, G, n, 2}));
  ContextAttention(mesh, Order::contiguous, N)(softmax_rule(), q, k, k, Variable(), Tensor(), mask,
                                               {});
}

TEST(ContextRefuses, WhatDoesNotFit) {
  const auto made = [](const ContextOptions& options) {
    return refusal(
        4, 1, [&](const Mesh& mesh) { ContextAttention(mesh, Order::contiguous, 8, options); });
  };
  EXPECT_EQ(made({Exchange::ring, 3, 1}),
            "a window of 3 ranks does not divide the ring of 4; 0 is one ring of all");
  EXPECT_EQ(made({Exchange::gather, 2, 1}),
            "a window of 2 ranks is the ring's; with exchange gather it must be 0");
  EXPECT_EQ(made({Exchange::gather, 0, 0}), "0 heads per gather; expected at least 1");
  EXPECT_EQ(made({Exchange::ring, 0, 1, 2}),
            "the same bits on any ring (block 2) need exchange gather, contiguous order, ulysses 1 "
            "and a multiple of ring x block tokens, found ring, contiguous, 1 and 8 over 4");
  EXPECT_EQ(made({Exchange::gather, 0, 1, 2}), "");
  EXPECT_EQ(refusal(2, 1,
                    [](const Mesh& mesh) {
                      ContextAttention(mesh.ring(), mesh.ulysses(),
                                       Layout(Order::contiguous, 8, 4));
                    }),
            "the layout is for a ring of 4 groups of 1 ranks, but there are 2 and 1");
  EXPECT_EQ(refusal(1, 4, [](const Mesh& mesh) { call(mesh, 6, 6, 2); }),
            "6 heads are not divided by ulysses 4; a ring takes any number of heads");
  EXPECT_EQ(refusal(1, 4, [](const Mesh& mesh) { call(mesh, 12, 6, 2); }),
            "6 key heads neither divide nor are divided by ulysses 4; a ring takes any number of "
            "heads");
  EXPECT_EQ(
      refusal(2, 1, [](const Mesh& mesh) { call(mesh, 2, 2, mesh.place().ring == 0 ? 3 : 4); }),
      "q [1, 2, 3, 2], k [1, 2, 3, 2] and v [1, 2, 3, 2], but rank 0 of ring 2, 0 of ulysses "
      "1, has 4 of the 8 tokens");
  EXPECT_NE(refusal(2, 1, [](const Mesh& mesh) { call(mesh, 2, 2, 4, Mask().causal().prefix(9)); })
                .find("mask: prefix of 9 tokens, but there are 8 keys"),
            std::string::npos);
}

TEST(ContextRefuses, RanksThatDisagree) {
  EXPECT_NE(
      refusal(2, 1,
              [](const Mesh& mesh) { call(mesh, 2, 2, 4, Mask().window(mesh.place().ring, -1)); })
          .find("sizes, mask and options: rank 1 differs from rank 0"),
      std::string::npos);
  EXPECT_NE(refusal(2, 1,
                    [](const Mesh& mesh) {
                      ContextAttention(mesh,
                                       mesh.place().ring == 0 ? Order::zigzag : Order::striped, 8);
                    })
                .find("layout and options: rank 1 differs from rank 0"),
            std::string::npos);
}

class ContextOn : public OnDevices {};

// In the checked mode.
TEST_P(ContextOn, RingsOfOneTwoAndFourGiveTheSameBits) {
  const int64_t N = 32;
  for (const bool packed : {false, true}) {
    ContextCase p = context_case(
        2, 4, 2, N,
        packed ? documents(2, N, true, [](int64_t b, int64_t i) { return (i + 3 * b) / 9; })
               : Mask().causal());
    p.sink = random_tensor({4}, "sink");
    p.options.rope = attention::Rope::half;
    p.options.dropout = 0.2;
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      if (dtype == Dtype::f64 && !has_f64()) continue;
      std::vector<std::vector<std::vector<double>>> bits;  // of rings, of tensors
      for (const int R : {1, 2, 4}) {
        const Dtype wide = dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
        Tensors whole{Tensor::empty(p.dout.shape(), dtype), Tensor::empty(p.q.shape(), dtype),
                      Tensor::empty(p.k.shape(), dtype), Tensor::empty(p.v.shape(), dtype),
                      Tensor::empty({4}, wide)};
        run_ranks(R, [&](const Communicator& world) {
          const ContextAttention attend(world, Communicator(), Layout(Order::contiguous, N, R),
                                        {Exchange::gather, 0, 1, 8});
          const OneRank rank(attend, world.rank(), 0, p, dtype, device());
          rank.backward();
          const Tensors parts{rank.out.value(), rank.q.grad(), rank.k.grad(), rank.v.grad()};
          for (size_t t = 0; t < parts.size(); ++t)
            attend.layout().put(whole[t], 2, parts[t].to(kCpu), world.rank());
          const Tensor dsink = rank.sink.grad().clone();
          world.all_reduce(dsink).wait();
          if (world.rank() == 0) whole[4].copy_(dsink.to(kCpu));
        });
        bits.emplace_back();
        for (const Tensor& t : whole) bits.back().push_back(t.to_vector<double>());
      }
      EXPECT_EQ(bits[0], bits[1]) << dtype;
      EXPECT_EQ(bits[0], bits[2]) << dtype;
      const ContextResults plain = whole_of(p);
      EXPECT_LT(worst(Tensor::from(bits[0][0], p.dout.shape()), plain.out),
                dtype == Dtype::bf16 ? 3e-2 : 1e-5);
      EXPECT_LT(worst(Tensor::from(bits[0][2], p.k.shape()), plain.dk),
                dtype == Dtype::bf16 ? 5e-2 : 1e-5);
    }
  }
}

TEST_P(ContextOn, ShardsAreTheWhole) {
  ContextCase p = context_case(1, 4, 2, 21, Mask().causal());
  p.sink = random_tensor({4}, "sink");
  p.options.rope = attention::Rope::interleaved;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    ContextCase low = p;
    for (Tensor* t : {&low.q, &low.k, &low.v, &low.dout}) *t = t->to(dtype).to(Dtype::f64);
    const ContextResults whole = whole_of(low);
    for (const MeshSizes& sizes : {MeshSizes{1, 2, 1}, MeshSizes{1, 2, 2}, MeshSizes{1, 3, 1}}) {
      run_ranks(sizes.ranks(), [&](const Communicator& world) {
        const Mesh mesh(world, sizes);
        for (const ContextOptions& options : {ContextOptions{}, ContextOptions{Exchange::gather}})
          compare_to_whole(mesh, sizes.ring == 3 ? Order::striped : Order::zigzag, options, low,
                           whole, dtype, device(), dtype == Dtype::f32 ? 1e-5 : 3e-2);
      });
    }
  }
}
FOVEA_ON_DEVICES(ContextOn);

}  // namespace
}  // namespace fovea::distributed
