// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "attention/score/score_test_util.h"
#include "core/parallel.h"
#include "core/testing/devices.h"

namespace fovea::attention {
namespace {

class Score : public OnDevices {
 protected:
  static std::vector<Dtype> dtypes() {
    if (has_f64()) return {Dtype::f64, Dtype::f32, Dtype::bf16};
    return {Dtype::f32, Dtype::bf16};
  }
};

TEST_P(Score, ForwardIsTheDefinitionInEveryDtype) {
  for (const Case& c : cases()) {
    for (Dtype dtype : dtypes()) {
      ScoreInputs in = inputs(c.sizes, dtype);
      Mask mask;
      ScoreOptions options;
      c.set(mask, in, options);
      const double bound = dtype == Dtype::f64 ? 1e-12 : dtype == Dtype::f32 ? 1e-6 : 1e-2;
      const ScoreResult result = softmax_forward(on(device(), in), mask.to(device()), options);
      EXPECT_EQ(result.out.device(), device());
      EXPECT_LT(relative_error(result.out, reference(in, mask, options)), bound)
          << c.name << ' ' << dtype;
    }
  }
}

TEST(ScoreEngine, GradientsMatchCentralDifferencesOfTheDefinition) {
  for (const Case& c : cases()) {
    ScoreInputs in = inputs(c.sizes, Dtype::f64);
    Mask mask;
    ScoreOptions options;
    c.set(mask, in, options);
    const Tensor dout = random_tensor({c.sizes.B, c.sizes.H, c.sizes.N, c.sizes.Dv}, "dout");
    const auto objective = [&] {
      const auto out = reference(in, mask, options).to_vector<double>(),
                 d = dout.to_vector<double>();
      double total = 0.0;
      for (size_t i = 0; i < out.size(); ++i) total += out[i] * d[i];
      return total;
    };
    const ScoreGrads grads =
        softmax_backward(dout, softmax_forward(in, mask, options), in, mask, options);
    const auto compare = [&](const Tensor& x, const Tensor& gradient, const char* name) {
      const auto found = gradient.to_vector<double>();
      double* values = x.data<double>();
      const int64_t step = std::max<int64_t>(
          1, x.numel() / 7);  // a few elements of each: the rest is the f32 test's
      for (int64_t e = 0; e < x.numel(); e += step) {
        const double before = values[e];
        values[e] = before + 1e-5;
        const double above = objective();
        values[e] = before - 1e-5;
        const double below = objective();
        values[e] = before;
        const double numeric = (above - below) / 2e-5;
        EXPECT_NEAR(found[static_cast<size_t>(e)], numeric, 1e-6 * std::max(1.0, std::abs(numeric)))
            << c.name << ' ' << name << " element " << e;
      }
    };
    compare(in.q, grads.dq, "dq");
    compare(in.k, grads.dk, "dk");
    compare(in.v, grads.dv, "dv");
    if (in.sink.defined()) compare(in.sink, grads.dsink, "dsink");
    if (in.bias.defined()) compare(in.bias, grads.dbias, "dbias");
  }
}

TEST_P(Score, LowerPrecisionGradientsFollowF64) {
  for (const Case& c : cases()) {
    for (Dtype dtype : dtypes()) {
      if (dtype == Dtype::f64) continue;
      ScoreInputs low = inputs(c.sizes, dtype);
      Mask mask;
      ScoreOptions options;
      c.set(mask, low, options);
      ScoreInputs wide = low;
      for (Tensor* t : {&wide.q, &wide.k, &wide.v}) *t = t->to(Dtype::f64);
      const Tensor dout =
          random_tensor({c.sizes.B, c.sizes.H, c.sizes.N, c.sizes.Dv}, "dout", dtype);
      const ScoreInputs moved = on(device(), low);
      const Mask moved_mask = mask.to(device());
      const ScoreGrads got =
          softmax_backward(dout.to(device()), softmax_forward(moved, moved_mask, options), moved,
                           moved_mask, options);
      const ScoreGrads want =
          softmax_backward(dout, softmax_forward(wide, mask, options), wide, mask, options);
      const double bound = dtype == Dtype::f32 ? 1e-5 : 2e-2;
      EXPECT_LT(relative_error(got.dq, want.dq), bound) << c.name << ' ' << dtype;
      EXPECT_LT(relative_error(got.dk, want.dk), bound) << c.name << ' ' << dtype;
      EXPECT_LT(relative_error(got.dv, want.dv), bound) << c.name << ' ' << dtype;
      if (low.sink.defined()) {
        EXPECT_LT(relative_error(got.dsink, want.dsink), bound) << c.name << ' ' << dtype;
      }
      if (low.bias.defined()) {
        EXPECT_LT(relative_error(got.dbias, want.dbias), bound) << c.name << ' ' << dtype;
      }
    }
  }
}

// Two ways to the same dq (ScoreOptions::deterministic).
TEST_P(Score, GradientsSummedAsTheyComeAreThoseSummedInTurns) {
  for (const Case& c : cases()) {
    ScoreInputs in = inputs(c.sizes, Dtype::bf16);
    Mask mask;
    ScoreOptions options;
    c.set(mask, in, options);
    in = on(device(), in);
    mask = mask.to(device());
    const ScoreResult result = softmax_forward(in, mask, options);
    const ScoreGrads turns = softmax_backward(result.out, result, in, mask, options);
    options.deterministic = false;
    const ScoreGrads any = softmax_backward(result.out, result, in, mask, options);
    EXPECT_LT(relative_error(any.dq, turns.dq), 1e-3) << c.name;
    EXPECT_EQ(any.dk.to_vector<float>(), turns.dk.to_vector<float>()) << c.name;
    EXPECT_EQ(any.dv.to_vector<float>(), turns.dv.to_vector<float>()) << c.name;
    if (in.bias.defined()) {
      EXPECT_EQ(any.dbias.to_vector<float>(), turns.dbias.to_vector<float>()) << c.name;
    }
  }
}

TEST(ScoreEngine, TheNumberOfThreadsDoesNotChangeTheBits) {
  // One thread packs and takes heads whole, three take heads whole, seven share them by tiles.
  const auto run = [](int threads, Dtype dtype) {
    const int before = num_threads();
    set_num_threads(threads);
    ScoreInputs in = inputs({2, 4, 2, 200, 200, 16, 16}, dtype);
    in.sink = Tensor::full({4}, 0.5);
    ScoreOptions options;
    options.rope = Rope::half;
    const ScoreResult result = softmax_forward(in, Mask().causal(), options);
    const ScoreGrads grads = softmax_backward(in.q, result, in, Mask().causal(), options);
    set_num_threads(before);
    return std::vector<std::vector<float>>{
        result.out.to_vector<float>(), grads.dq.to_vector<float>(), grads.dk.to_vector<float>(),
        grads.dv.to_vector<float>(), grads.dsink.to_vector<float>()};
  };
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const auto one = run(1, dtype);
    EXPECT_EQ(one, run(3, dtype)) << dtype;
    EXPECT_EQ(one, run(7, dtype)) << dtype;
  }
}

TEST(ScoreEngine, LargeLogitsDoNotOverflow) {
  ScoreInputs in = inputs({1, 1, 1, 70, 70, 4, 4}, Dtype::f32);
  for (int64_t i = 0; i < in.q.numel(); ++i) in.q.data<float>()[i] *= 1e4f;
  for (float x : softmax_forward(in, Mask().causal(), {}).out.to_vector<float>())
    EXPECT_TRUE(std::isfinite(x));
}

TEST_P(Score, ANanReachesOnlyWhoSeesIt) {
  for (const Dtype dtype : dtypes()) {
    for (const int64_t queries : {70, 3}) {
      for (const bool documents : {false, true}) {
        ScoreInputs clean = inputs({1, 1, 1, queries, 70, 4, 4}, dtype);
        Mask mask;
        mask.causal();
        if (documents) {  // of 35 tokens
          const Tensor ids = Tensor::empty({1, 70}, Dtype::i32);
          for (int64_t j = 0; j < 70; ++j) ids.data<int32_t>()[j] = static_cast<int32_t>(j / 35);
          mask.documents(ids.slice(1, 70 - queries, 70), ids);
        }
        for (const char* where : {"q", "k", "v"}) {
          ScoreInputs in{clean.q.clone(), clean.k.clone(), clean.v.clone(), {}, {}};
          const int64_t bad =
              *where == 'q' ? queries - 2 : 69;  // the key that only the last query sees
          const Tensor& t = *where == 'q' ? in.q : *where == 'k' ? in.k : in.v;
          t.slice(2, bad, bad + 1).fill_(std::nan(""));
          const ScoreInputs moved = on(device(), in);
          const Mask moved_mask = mask.to(device());
          const ScoreResult result = softmax_forward(moved, moved_mask, {});
          const auto out = result.out.to_vector<double>();
          const int64_t broken = *where == 'q' ? bad : queries - 1;
          for (int64_t i = 0; i < queries; ++i)
            EXPECT_EQ(std::isnan(out[static_cast<size_t>(i * 4)]), i == broken)
                << dtype << ' ' << where << ' ' << queries << " row " << i;
          const ScoreGrads grads =
              softmax_backward(random_tensor({1, 1, queries, 4}, "dout", dtype).to(device()),
                               result, moved, moved_mask, {});
          const auto dq = grads.dq.to_vector<double>(), dv = grads.dv.to_vector<double>();
          for (int64_t i = 0; i < queries; ++i)
            EXPECT_EQ(std::isnan(dq[static_cast<size_t>(i * 4)]), i == broken)
                << dtype << ' ' << where << " dq of row " << i;
          for (int64_t j = 0; j < 70; ++j) {
            const bool seen = mask.allowed(0, 0, broken, j, queries, 70);
            if (*where == 'v') continue;
            EXPECT_EQ(std::isnan(dv[static_cast<size_t>(j * 4)]), seen)
                << dtype << ' ' << where << " dv of key " << j;
          }
        }
      }
    }
  }
}

TEST(ScoreEngine, ExtraMemoryGrowsWithNNotWithNSquared) {
  // On one thread: with more, how many heads' working memories are alive at once is a matter of
  // luck.
  const int before_threads = num_threads();
  set_num_threads(1);
  const auto peak = [](int64_t n) {
    const ScoreInputs in = inputs({1, 2, 2, n, n, 8, 8}, Dtype::f32);
    const int64_t before = memory_stats().live_bytes;
    reset_peak();
    const ScoreResult result = softmax_forward(in, Mask().causal(), {});
    softmax_backward(in.q, result, in, Mask().causal(), {});
    return memory_stats().peak_bytes - before;
  };
  EXPECT_LE(peak(1024), 4 * peak(256) + 4096);
  set_num_threads(before_threads);
}

TEST(ScoreEngine, TileClassesAreNeverWrong) {
  const int64_t n = 30;
  for (const Case& c : cases()) {
    if (c.sizes.N != 70 && c.sizes.N != 150 && c.sizes.N != 80) continue;
    ScoreInputs in = inputs(c.sizes, Dtype::f32);
    Mask mask;
    ScoreOptions options;
    c.set(mask, in, options);
    for (int64_t size : {1, 5, 16}) {
      for (int64_t i0 = 0; i0 + size <= n; i0 += 3) {
        for (int64_t j0 = 0; j0 + size <= n; j0 += 2) {
          int64_t seen = 0;
          for (int64_t i = i0; i < i0 + size; ++i) {
            for (int64_t j = j0; j < j0 + size; ++j)
              seen += mask.allowed(0, 1, i, j, c.sizes.N, c.sizes.M);
          }
          const TileClass cls =
              mask.classify(0, 1, i0, i0 + size, j0, j0 + size, c.sizes.N, c.sizes.M);
          if (cls == TileClass::skip) {
            EXPECT_EQ(seen, 0) << c.name;
          }
          if (cls == TileClass::full) {
            EXPECT_EQ(seen, size * size) << c.name;
          }
        }
      }
    }
  }
}

TEST(ScoreEngine, ShapesThatDoNotFitAreNamed) {
  const auto message = [](const ScoreInputs& in, const Mask& mask) -> std::string {
    try {
      softmax_forward(in, mask, {});
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const Sizes z;
  ScoreInputs in = inputs(z, Dtype::f32);
  in.k = random_tensor({1, 2, 5, 3}, "k", Dtype::f32);
  EXPECT_EQ(message(in, {}), "softmax: q [1, 2, 5, 4] and k [1, 2, 5, 3] differ in D (4 and 3)");
  EXPECT_EQ(message(inputs({1, 3, 2, 5, 5, 4, 4}, Dtype::f32), {}),
            "softmax: 3 query heads are no multiple of 2 key heads");
  EXPECT_EQ(message(inputs({1, 2, 2, 6, 5, 4, 4}, Dtype::f32), Mask().causal()),
            "mask: causal attention needs N <= M, found N 6, M 5");
}

FOVEA_ON_DEVICES(Score);

}  // namespace
}  // namespace fovea::attention
