// SPDX-License-Identifier: Apache-2.0
#include "attention/delta/delta.h"

#include "attention/linear/linear_test_util.h"
#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "core/parallel.h"
#include "core/testing/devices.h"

namespace fovea::attention {
namespace {

// Keys of about unit length, beta around 0.5.
DeltaInputs delta_case(const LinearCase& c) {
  DeltaInputs in{linear_case(c), normal({c.B, c.H, c.N}, "beta", 0.3, 0.5)};
  in.k = normal(in.k.shape(), "k", 1.0 / std::sqrt(static_cast<double>(c.Dk)));
  return in;
}
DeltaInputs delta_tokens(const DeltaInputs& in, int64_t begin, int64_t end) {
  return {tokens(in, begin, end), in.beta.slice(2, begin, end)};
}

TEST(Delta, IsTheRecurrence) {
  for (const LinearCase& c : edge_cases()) {
    const DeltaInputs in = delta_case(c);
    const LinearResult x = delta_forward(in), reference = recurrence(in, in.beta);
    EXPECT_LT(error_of(x.out, reference.out), 1e-12) << c.N;
    EXPECT_LT(error_of(x.state, reference.state), 1e-12) << c.N;
  }
  const DeltaInputs wide = delta_case({1, 1, 70, 9, 130, Gates::token, true, true});
  EXPECT_LT(error_of(delta_forward(wide).out, recurrence(wide, wide.beta).out), 1e-12);
}

TEST(Delta, GradientsMatchDifferences) {
  const SerialScope small;  // too little work for threads
  for (const Gates gates : {Gates::none, Gates::head, Gates::token, Gates::channel}) {
    for (const bool documents : {false, true}) {
      const DeltaInputs in = delta_case({1, 2, 67, 2, 2, gates, documents, true});
      const auto leaf = [](const Tensor& t) { return Variable(t, true); };
      Variables leaves{leaf(in.q), leaf(in.k), leaf(in.v), leaf(in.beta), leaf(in.state)};
      if (in.g.defined()) leaves.push_back(leaf(in.g));
      gradcheck(
          [&](const Variables& x) {
            return delta_rule(x[0], x[1], x[2], x[3], x.size() > 5 ? x[5] : Variable(), x[4],
                              in.starts);
          },
          leaves);
    }
  }
}

TEST(Delta, ShardsThatPassStatesAreTheWhole) {
  for (const Gates gates : {Gates::none, Gates::token, Gates::channel}) {
    const int64_t N = 150;
    const DeltaInputs in = delta_case({2, 2, N, 4, 3, gates, gates == Gates::token, true});
    const Tensor dout = normal({2, 2, N, 3}, "dout"), dlast = normal({2, 2, 4, 3}, "dlast");
    const LinearResult whole = delta_forward(in);
    const DeltaGrads whole_grads = delta_backward(in, dout, dlast);
    for (int shards = 1; shards <= 5; ++shards) {
      const auto cut = [&](int r) { return r == shards ? N : N * r * r / (shards * shards); };
      std::vector<DeltaInputs> part;
      Tensor entering = in.state;
      for (int r = 0; r < shards; ++r) {
        part.push_back(delta_tokens(in, cut(r), cut(r + 1)));
        DeltaInputs& own = part.back();
        own.state = Tensor();
        const Tensor added = delta_forward(own).state, passed = delta_transition(own);
        own.state = entering;
        EXPECT_LT(error_of(delta_forward(own).out, whole.out.slice(2, cut(r), cut(r + 1))), 1e-12);
        entering = add(matmul(passed, entering), added);
      }
      EXPECT_LT(error_of(entering, whole.state), 1e-12);
      Tensor leaving = dlast;
      for (int r = shards - 1; r >= 0; --r) {
        const DeltaInputs& own = part[static_cast<size_t>(r)];
        const Tensor shard_dout = dout.slice(2, cut(r), cut(r + 1));
        const DeltaGrads grads = delta_backward(own, shard_dout, leaving);
        for (const auto& [a, b] : {std::pair{grads.dq, whole_grads.dq},
                                   {grads.dk, whole_grads.dk},
                                   {grads.dv, whole_grads.dv},
                                   {grads.dbeta, whole_grads.dbeta}})
          EXPECT_LT(error_of(a, b.slice(2, cut(r), cut(r + 1))), 1e-12);
        if (in.g.defined()) {
          EXPECT_LT(error_of(grads.dg, whole_grads.dg.slice(2, cut(r), cut(r + 1))), 1e-11);
        }
        const Tensor local = delta_backward(own, shard_dout).dstate;
        leaving = add(matmul(delta_transition(own).transpose(2, 3), leaving), local);
        EXPECT_LT(error_of(leaving, grads.dstate), 1e-12);
      }
      EXPECT_LT(error_of(leaving, whole_grads.dstate), 1e-12);
    }
  }
}

TEST(Delta, StepsAreTheSequence) {
  const DeltaInputs in = delta_case({2, 2, 7, 4, 3, Gates::token, false, true});
  const LinearResult whole = delta_forward(in);
  const Tensor state = in.state.clone();
  for (int64_t t = 0; t < 7; ++t) {
    DeltaInputs one = delta_tokens(in, t, t + 1);
    one.state = state;
    EXPECT_LT(error_of(delta_step(one), whole.out.slice(2, t, t + 1)), 1e-13);
  }
  EXPECT_LT(error_of(state, whole.state), 1e-13);
}

// beta = 1 and a unit key: the state answers the newest value to the newest key.
TEST(Delta, AWholeStepOverwritesTheAnswerToItsKey) {
  DeltaInputs in = delta_case({1, 1, 65, 4, 3, Gates::none, false, true});
  in.beta.fill_(1.0);
  double* k = in.k.data<double>();
  for (int64_t t = 0; t < 65; ++t) {
    double norm = 0.0;
    for (int64_t c = 0; c < 4; ++c) norm += k[t * 4 + c] * k[t * 4 + c];
    for (int64_t c = 0; c < 4; ++c) k[t * 4 + c] /= std::sqrt(norm);
  }
  in.q = in.k;
  EXPECT_LT(error_of(delta_forward(in).out, in.v), 1e-12);
}

TEST(Delta, WrongInputsExplainThemselves) {
  DeltaInputs in = delta_case({});
  in.beta = Tensor::zeros({1, 2, 4}, Dtype::f64);
  try {
    delta_forward(in);
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "delta: beta is f64 [1, 2, 4]; expected f64 [1, 2, 5]");
  }
}

class DeltaOn : public OnDevices {};

TEST_P(DeltaOn, ForwardAndBackwardAreWithinTheirDtype) {
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
      const DeltaInputs in = delta_case(c);
      const DeltaInputs moved{converted(in, dtype, device()), in.beta.to(Dtype::f32).to(device())},
          exact{converted(moved, Dtype::f64, kCpu), moved.beta.to(kCpu).to(Dtype::f64)};
      const Tensor dout = normal({c.B, c.H, c.N, c.Dv}, "dout").to(dtype),
                   dlast = normal({c.B, c.H, c.Dk, c.Dv}, "dlast").to(Dtype::f32);
      const double bound = dtype == Dtype::f32 ? 1e-5 : 1e-2;
      const LinearResult x = delta_forward(moved), y = delta_forward(exact);
      EXPECT_LT(error_of(x.out, y.out), bound);
      EXPECT_LT(error_of(x.state, y.state), 1e-5);
      const DeltaGrads dx = delta_backward(moved, dout.to(device()), dlast.to(device())),
                       dy = delta_backward(exact, dout.to(Dtype::f64), dlast.to(Dtype::f64));
      EXPECT_LT(error_of(dx.dq, dy.dq), bound);
      EXPECT_LT(error_of(dx.dk, dy.dk), bound);
      EXPECT_LT(error_of(dx.dv, dy.dv), bound);
      EXPECT_LT(error_of(dx.dbeta, dy.dbeta), 1e-4);
      EXPECT_LT(error_of(dx.dstate, dy.dstate), 1e-5);
      if (moved.g.defined()) {
        EXPECT_LT(error_of(dx.dg, dy.dg), 1e-4);
      }
    }
  }
}

FOVEA_ON_DEVICES(DeltaOn);

}  // namespace
}  // namespace fovea::attention
