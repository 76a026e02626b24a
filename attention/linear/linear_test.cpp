// SPDX-License-Identifier: Apache-2.0
#include "attention/linear/linear.h"

#include "attention/linear/linear_test_util.h"
#include "core/ops/elementwise.h"
#include "core/parallel.h"
#include "core/testing/devices.h"

namespace fovea::attention {
namespace {

TEST(Linear, IsTheRecurrence) {
  for (const LinearCase& c : edge_cases()) {
    const LinearInputs in = linear_case(c);
    const LinearResult x = linear_forward(in), reference = recurrence(in);
    EXPECT_LT(error_of(x.out, reference.out), 1e-13) << c.N;
    EXPECT_LT(error_of(x.state, reference.state), 1e-13) << c.N;
  }
}

TEST(Linear, GradientsMatchDifferences) {
  const SerialScope small;  // too little work for threads
  for (const Gates gates : {Gates::none, Gates::head, Gates::token, Gates::channel}) {
    for (const bool documents : {false, true}) {
      const LinearInputs in = linear_case({1, 2, 67, 2, 2, gates, documents, true});
      const auto leaf = [](const Tensor& t) {
        return t.defined() ? Variable(t, true) : Variable();
      };
      Variables leaves{leaf(in.q), leaf(in.k), leaf(in.v), leaf(in.state)};
      if (in.g.defined()) leaves.push_back(leaf(in.g));
      gradcheck(
          [&](const Variables& x) {
            return linear_attention(x[0], x[1], x[2], x.size() > 4 ? x[4] : Variable(), x[3],
                                    in.starts);
          },
          leaves);
    }
  }
}

TEST(Linear, StrongDecayNeitherOverflowsNorDivides) {
  LinearInputs in = linear_case({1, 1, 130, 4, 3, Gates::channel, false, true});
  double* g = in.g.data<double>();
  for (int64_t i = 0; i < in.g.numel(); ++i) g[i] *= i % 3 == 0 ? 100.0 : 1.0;
  const LinearResult reference = recurrence(in);
  const LinearInputs f32 = converted(in, Dtype::f32, kCpu);
  EXPECT_LT(error_of(linear_forward(f32).out, reference.out), 1e-5);
  const Tensor dout = normal({1, 1, 130, 3}, "dout");
  const LinearGrads x = linear_backward(f32, dout.to(Dtype::f32)), y = linear_backward(in, dout);
  for (const auto& [a, b] : {std::pair{x.dq, y.dq}, {x.dk, y.dk}, {x.dv, y.dv}, {x.dg, y.dg}})
    EXPECT_LT(error_of(a, b), 2e-5);
}

TEST(Linear, ShardsThatPassStatesAreTheWhole) {
  for (const Gates gates : {Gates::none, Gates::head, Gates::token, Gates::channel}) {
    const int64_t N = 150;
    const LinearInputs in = linear_case({2, 2, N, 4, 3, gates, gates == Gates::token, true});
    const Tensor dout = normal({2, 2, N, 3}, "dout"), dlast = normal({2, 2, 4, 3}, "dlast");
    const LinearResult whole = linear_forward(in);
    const LinearGrads whole_grads = linear_backward(in, dout, dlast);
    for (int shards = 1; shards <= 5; ++shards) {
      const auto cut = [&](int r) { return r == shards ? N : N * r * r / (shards * shards); };
      // Forward: each rank's (S, M) from a zero state, then the states that enter.
      std::vector<LinearInputs> part;
      Tensor entering = in.state;
      for (int r = 0; r < shards; ++r) {
        part.push_back(tokens(in, cut(r), cut(r + 1)));
        LinearInputs& own = part.back();
        own.state = Tensor();
        const Tensor added = linear_forward(own).state, passed = linear_transition(own);
        own.state = entering;
        EXPECT_LT(error_of(linear_forward(own).out, whole.out.slice(2, cut(r), cut(r + 1))), 1e-12);
        entering = add(mul(passed, entering), added);
      }
      EXPECT_LT(error_of(entering, whole.state), 1e-12);
      Tensor leaving = dlast;
      for (int r = shards - 1; r >= 0; --r) {
        const LinearInputs& own = part[static_cast<size_t>(r)];
        const Tensor shard_dout = dout.slice(2, cut(r), cut(r + 1));
        const LinearGrads grads = linear_backward(own, shard_dout, leaving);
        for (const auto& [a, b] : {std::pair{grads.dq, whole_grads.dq},
                                   {grads.dk, whole_grads.dk},
                                   {grads.dv, whole_grads.dv}})
          EXPECT_LT(error_of(a, b.slice(2, cut(r), cut(r + 1))), 1e-12);
        if (in.g.defined() && in.g.rank() > 1) {
          EXPECT_LT(error_of(grads.dg, whole_grads.dg.slice(2, cut(r), cut(r + 1))), 1e-11);
        }
        const Tensor local = linear_backward(own, shard_dout).dstate;
        leaving = add(mul(linear_transition(own), leaving), local);
        EXPECT_LT(error_of(leaving, grads.dstate), 1e-12);
      }
      EXPECT_LT(error_of(leaving, whole_grads.dstate), 1e-12);
    }
  }
}

TEST(Linear, StepsAreTheSequence) {
  const LinearInputs in = linear_case({2, 2, 7, 4, 3, Gates::channel, false, true});
  const LinearResult whole = linear_forward(in);
  const Tensor state = in.state.clone();
  for (int64_t t = 0; t < 7; ++t) {
    LinearInputs one = tokens(in, t, t + 1);
    one.state = state;
    EXPECT_LT(error_of(linear_step(one), whole.out.slice(2, t, t + 1)), 1e-13);
  }
  EXPECT_LT(error_of(state, whole.state), 1e-13);
}

TEST(Linear, BitsDoNotDependOnThreads) {
  const LinearInputs in =
      converted(linear_case({1, 2, 200, 24, 20, Gates::channel, true, true}), Dtype::f32, kCpu);
  const Tensor dout = normal({1, 2, 200, 20}, "dout").to(Dtype::f32);
  const int before = num_threads();
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 2}) {
    set_num_threads(threads);
    const LinearGrads grads = linear_backward(in, dout);
    results.push_back(linear_forward(in).out.to_vector<float>());
    results.push_back(grads.dk.to_vector<float>());
    results.push_back(grads.dg.to_vector<float>());
  }
  set_num_threads(before);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(results[i], results[i + 3]);
}

TEST(Linear, DocumentsStartWhereIdsChange) {
  const Tensor ids = Tensor::from(std::vector<int32_t>{3, 3, 1, 1, 1, 0, 0, 0, 2, 2}, {2, 5});
  EXPECT_EQ(document_starts(ids).to_vector<uint8_t>(),
            (std::vector<uint8_t>{1, 0, 1, 0, 0, 1, 0, 0, 1, 0}));
}

TEST(Linear, EmptySequencesPassTheStateOn) {
  LinearInputs in = linear_case({1, 2, 5, 4, 3, Gates::token, false, true});
  in = tokens(in, 0, 0);
  EXPECT_EQ(error_of(linear_forward(in).state, in.state), 0.0);
  const Tensor dlast = normal({1, 2, 4, 3}, "dlast");
  EXPECT_EQ(error_of(linear_backward(in, Tensor(), dlast).dstate, dlast), 0.0);
}

TEST(Linear, WrongInputsExplainThemselves) {
  const auto message = [](const LinearInputs& in) -> std::string {
    try {
      linear_forward(in);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  LinearInputs in = linear_case({});
  in.g = Tensor::zeros({2, 3}, Dtype::f64);
  EXPECT_EQ(message(in), "linear: g is [2, 3]; expected [2], [1, 2, 5] or [1, 2, 5, 4]");
  in.g = Tensor();
  in.state = Tensor::zeros({1, 2, 4, 4}, Dtype::f64);
  EXPECT_EQ(message(in), "linear: state is f64 [1, 2, 4, 4]; expected f64 [1, 2, 4, 3]");
  in.state = Tensor();
  in.k = Tensor::zeros({1, 2, 6, 4}, Dtype::f64);
  EXPECT_EQ(message(in), "linear: k is [1, 2, 6, 4] but q is [1, 2, 5, 4]");
}

class LinearOn : public OnDevices {};

TEST_P(LinearOn, ForwardAndBackwardAreWithinTheirDtype) {
  const LinearCase cases[] = {{1, 1, 65, 8, 8, Gates::none, false, false},
                              {1, 2, 70, 20, 9, Gates::token, true, true},
                              {2, 1, 37, 12, 24, Gates::head, false, true},
                              {1, 1, 81, 8, 6, Gates::channel, true, true},
                              {1, 1, 66, 68, 72, Gates::token, false, true},
                              {1, 1, 67, 72, 66, Gates::channel, false, true}};
  for (const LinearCase& c : cases) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      // Wide ones take long: one in each dtype.
      if (c.Dk > 64 && (dtype == Dtype::f32) != (c.gates == Gates::channel)) continue;
      const LinearInputs moved = converted(linear_case(c), dtype, device()),
                         exact = converted(moved, Dtype::f64, kCpu);
      const Tensor dout = normal({c.B, c.H, c.N, c.Dv}, "dout").to(dtype),
                   dlast = normal({c.B, c.H, c.Dk, c.Dv}, "dlast").to(Dtype::f32);
      const double bound = dtype == Dtype::f32 ? 1e-5 : 1e-2;
      const LinearResult x = linear_forward(moved), y = linear_forward(exact);
      EXPECT_LT(error_of(x.out, y.out), bound);
      EXPECT_LT(error_of(x.state, y.state), 1e-5);
      const LinearGrads dx = linear_backward(moved, dout.to(device()), dlast.to(device())),
                        dy = linear_backward(exact, dout.to(Dtype::f64), dlast.to(Dtype::f64));
      EXPECT_LT(error_of(dx.dq, dy.dq), bound);
      EXPECT_LT(error_of(dx.dk, dy.dk), bound);
      EXPECT_LT(error_of(dx.dv, dy.dv), bound);
      EXPECT_LT(error_of(dx.dstate, dy.dstate), 1e-5);
      if (moved.g.defined()) {
        EXPECT_LT(error_of(dx.dg, dy.dg), 1e-4);
      }
    }
  }
}

FOVEA_ON_DEVICES(LinearOn);

}  // namespace
}  // namespace fovea::attention
