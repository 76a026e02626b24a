// SPDX-License-Identifier: Apache-2.0
// What the score engine owes on every device beyond its definition (score_test.cpp): all head
// dims, tile edges, strided views, rows that see nothing, the same bits twice.
#include <gtest/gtest.h>

#include "attention/score/score_test_util.h"
#include "core/cuda/sm90.h"
#include "core/parallel.h"
#include "core/testing/devices.h"
#include "core/warning.h"
#if defined(FOVEA_INTERPRETED)
#include "core/interpreter/machine.h"
#endif

namespace fovea::attention {
namespace {

class ScoreOn : public OnDevices {
 protected:
  struct Errors {
    double out, dq, dk, dv;
    double largest() const { return std::max(std::max(out, dq), std::max(dk, dv)); }
  };
  // Against f64 on the cpu, of the same inputs.
  static Errors errors(const Sizes& z, Dtype dtype, const Mask& mask, const ScoreOptions& options) {
    const ScoreInputs low = inputs(z, dtype), moved = on(device(), low);
    ScoreInputs wide = low;
    for (Tensor* t : {&wide.q, &wide.k, &wide.v}) *t = t->to(Dtype::f64);
    const Tensor dout = random_tensor({z.B, z.H, z.N, z.Dv}, "dout", dtype);
    const ScoreResult wanted = softmax_forward(wide, mask, options),
                      found = softmax_forward(moved, mask.to(device()), options);
    const ScoreGrads want = softmax_backward(dout, wanted, wide, mask, options),
                     got = softmax_backward(dout.to(device()), found, moved, mask.to(device()),
                                            options);
    return {relative_error(found.out, wanted.out), relative_error(got.dq, want.dq),
            relative_error(got.dk, want.dk), relative_error(got.dv, want.dv)};
  }
  static double bound(Dtype dtype) { return dtype == Dtype::f32 ? 1e-5 : 2e-2; }
};

TEST_P(ScoreOn, EveryHeadDim) {
  for (const auto& [D, Dv] : {std::pair<int64_t, int64_t>{32, 32},
                              {40, 64},
                              {66, 96},
                              {128, 80},
                              {200, 130},
                              {256, 256}}) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const int64_t heads = D > 128 ? 1 : 2;
      EXPECT_LT(errors({1, heads, 1, 17, 33, D, Dv}, dtype, Mask().causal(), {}).largest(),
                bound(dtype))
          << D << ' ' << Dv << ' ' << dtype;
    }
  }
}

// Past the widest tile.
TEST_P(ScoreOn, WideHeads) {
  std::vector<std::string> lines;
  const WarningHandler before =
      set_warning_handler([&](const std::string& line) { lines.push_back(line); });
  for (const auto& [D, Dv] :
       {std::pair<int64_t, int64_t>{264, 264}, {320, 16}, {8, 520}, {520, 261}}) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      EXPECT_LT(errors({1, 2, 1, 5, 35, D, Dv}, dtype, Mask().causal(), {}).largest(), bound(dtype))
          << D << ' ' << Dv << ' ' << dtype;
    }
  }
  set_warning_handler(before);
  ASSERT_EQ(lines.size(), device().is_cpu() ? 0u : 4u);  // of eight calls with four pairs of dims
  if (!device().is_cpu()) {
    EXPECT_EQ(lines[0], concat("score: head dims are 264 and 264; past 256 device ", device(),
                               " has only a slow kernel"));
  }
}

TEST_P(ScoreOn, WideHeadsHaveEveryFeature) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    for (const bool cross : {false, true}) {
      ScoreInputs low = inputs({2, 4, 2, 6, cross ? 40 : 6, 264, 8}, dtype);
      low.sink = Tensor::from(std::vector<float>{0.5f, -1.0f, 1.0f, 0.0f}, {4});
      low.bias = random_tensor({1, 4, 6, low.k.dim(2)}, "bias", Dtype::f32);
      low.alibi_slopes = alibi_slopes(4);
      ScoreOptions options;
      options.softcap = 3.0;
      options.rope = Rope::half;
      options.dropout = 0.2;
      options.rng = RngKey(1, "dropout", "x");
      const Mask mask = Mask().causal().window(30, -1);
      ScoreInputs wide = low;
      for (Tensor* t : {&wide.q, &wide.k, &wide.v, &wide.sink, &wide.bias}) *t = t->to(Dtype::f64);
      const ScoreInputs moved = on(device(), low);
      const Tensor dout = random_tensor({2, 4, 6, 8}, "dout", dtype);
      const ScoreResult wanted = softmax_forward(wide, mask, options),
                        found = softmax_forward(moved, mask, options);
      const ScoreGrads want = softmax_backward(dout, wanted, wide, mask, options),
                       got = softmax_backward(dout.to(device()), found, moved, mask, options);
      EXPECT_LT(relative_error(found.out, wanted.out), bound(dtype)) << dtype;
      EXPECT_LT(relative_error(found.lse, wanted.lse), bound(dtype)) << dtype;
      EXPECT_LT(relative_error(got.dq, want.dq), bound(dtype)) << dtype;
      EXPECT_LT(relative_error(got.dk, want.dk), bound(dtype)) << dtype;
      EXPECT_LT(relative_error(got.dv, want.dv), bound(dtype)) << dtype;
      EXPECT_LT(relative_error(got.dsink, want.dsink), bound(dtype)) << dtype;
      EXPECT_LT(relative_error(got.dbias, want.dbias), bound(dtype)) << dtype;
    }
  }
}

TEST_P(ScoreOn, SizesAroundTiles) {
  for (const int64_t n : {1, 17, 63, 65, 130}) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      ScoreOptions turned;
      turned.rope = Rope::half;
      EXPECT_LT(errors({1, 1, 1, n, n, 16, 16}, dtype, Mask().causal(), turned).largest(),
                bound(dtype))
          << n << ' ' << dtype;
      EXPECT_LT(errors({1, 1, 1, n, 70, 16, 16}, dtype, Mask(), {}).largest(), bound(dtype))
          << n << " of 70 " << dtype;
    }
  }
}

TEST_P(ScoreOn, RowsThatSeeNothingAreZeros) {
  std::vector<int32_t> ids(70, 0);
  for (const size_t i : {3u, 64u, 69u}) ids[i] = -1;
  const Tensor documents = Tensor::from(ids, {1, 70}, device());
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const ScoreInputs in = on(device(), inputs({1, 1, 1, 70, 70, 8, 8}, dtype));
    const Mask mask = Mask().documents(documents, documents);
    const ScoreResult result = softmax_forward(in, mask, {});
    const ScoreGrads grads = softmax_backward(in.q, result, in, mask, {});
    const auto out = result.out.to_vector<float>(), lse = result.lse.to_vector<float>(),
               dq = grads.dq.to_vector<float>(), dk = grads.dk.to_vector<float>(),
               dv = grads.dv.to_vector<float>();
    for (size_t i = 0; i < 70; ++i) {
      EXPECT_EQ(lse[i] == -INFINITY, ids[i] < 0) << i;
      for (const auto* x : {&out, &dq, &dk, &dv})
        EXPECT_EQ((*x)[8 * i] == 0.0f, ids[i] < 0) << i << ' ' << dtype;
    }
  }
}

TEST_P(ScoreOn, PackedViewsAreReadAndWrittenInPlace) {
  for (const int64_t D : {8, 12}) {  // 12: rows of bf16 that do not start on 16 bytes
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const int64_t B = 2, H = 2, N = 20;
      const Tensor packed = random_tensor({B, N, 3 * H * D}, "qkv", dtype).to(device());
      const auto part = [&](const Tensor& t, int64_t n) {
        return t.slice(2, n * H * D, (n + 1) * H * D).view({B, N, H, D}).transpose(1, 2);
      };
      ScoreOptions options;
      options.rope = Rope::interleaved;
      const ScoreInputs views{part(packed, 0), part(packed, 1), part(packed, 2), {}, {}},
          whole{views.q.clone(), views.k.clone(), views.v.clone(), {}, {}};
      const ScoreResult a = softmax_forward(views, Mask().causal(), options),
                        b = softmax_forward(whole, Mask().causal(), options);
      EXPECT_EQ(a.out.to_vector<float>(), b.out.to_vector<float>());
      const Tensor gradient = Tensor::full({B, N, 3 * H * D}, 7.0, dtype, device());
      const ScoreGrads into =
          softmax_backward(a.out, a, views, Mask().causal(), options,
                           {part(gradient, 0), part(gradient, 1), part(gradient, 2), Tensor()});
      const ScoreGrads made = softmax_backward(b.out, b, whole, Mask().causal(), options);
      EXPECT_EQ(part(gradient, 0).to_vector<float>(), made.dq.to_vector<float>());
      EXPECT_EQ(part(gradient, 1).to_vector<float>(), made.dk.to_vector<float>());
      EXPECT_EQ(part(gradient, 2).to_vector<float>(), made.dv.to_vector<float>());
    }
  }
}

TEST_P(ScoreOn, TwoRunsGiveTheSameBits) {
  const auto run = [](int threads, Dtype dtype) {
    const int before = num_threads();
    set_num_threads(threads);
    ScoreInputs in = inputs({2, 4, 2, 40, 70, 16, 16}, dtype);
    in.sink = Tensor::full({4}, 0.5);
    in.bias = random_tensor({1, 1, 40, 70}, "bias", Dtype::f32);
    in = on(device(), in);
    const ScoreResult result = softmax_forward(in, Mask().causal(), {});
    const ScoreGrads grads = softmax_backward(in.q, result, in, Mask().causal(), {});
    set_num_threads(before);
    return std::vector<std::vector<float>>{
        result.out.to_vector<float>(),  grads.dq.to_vector<float>(),
        grads.dk.to_vector<float>(),    grads.dv.to_vector<float>(),
        grads.dsink.to_vector<float>(), grads.dbias.to_vector<float>()};
  };
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) EXPECT_EQ(run(1, dtype), run(3, dtype));
}

// Several tiles of keys add to one dq, in every mask's way; by the kernels for Hopper where the
// device runs them, and by those for all cards.
class BackwardOn : public ScoreOn {
 protected:
  void TearDown() override { allow_sm90(true); }
  static std::vector<bool> hopper_or_not() {
    return runs_sm90(device()) ? std::vector<bool>{true, false} : std::vector<bool>{false};
  }
  struct Masked {
    const char* name;
    Sizes sizes;
    Mask mask;
  };
  static std::vector<Masked> masked() {
    std::vector<int32_t> ids(260);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = i < 190 ? static_cast<int32_t>(i / 60) : -1;
    const Tensor documents = Tensor::from(ids, {1, 260});
    const Tensor blocks = Tensor::from(std::vector<uint8_t>{1, 1, 0, 1, 0, 0, 1, 1, 1}, {1, 3, 3});
    return {
        {"full", {1, 2, 1, 70, 290, 16, 16}, Mask()},
        {"causal", {1, 2, 1, 260, 260, 16, 16}, Mask().causal()},
        {"64 columns", {1, 1, 1, 140, 150, 64, 56}, Mask().causal()},
        {"128 columns", {1, 1, 1, 70, 150, 104, 128}, Mask().causal().window(100, -1)},
        {"wide heads", {1, 1, 1, 40, 200, 136, 144}, Mask().causal()},
        {"window", {1, 1, 1, 260, 260, 16, 16}, Mask().causal().window(50, -1)},
        {"documents", {1, 1, 1, 260, 260, 16, 16}, Mask().causal().documents(documents, documents)},
        {"blocks", {1, 1, 1, 260, 260, 16, 16}, Mask().block_sparse(blocks, 100, 100)}};
  }
  // A forward, and as many backwards of it as are asked for.
  class Gradients {
   public:
    explicit Gradients(const Masked& m)
        : in_(on(device(), inputs(m.sizes, Dtype::bf16))),
          mask_(m.mask.to(device())),
          result_(softmax_forward(in_, mask_, {})) {}
    std::vector<std::vector<float>> operator()(const ScoreOptions& options) const {
      const ScoreGrads d = softmax_backward(result_.out, result_, in_, mask_, options);
      return {d.dq.to_vector<float>(), d.dk.to_vector<float>(), d.dv.to_vector<float>()};
    }

   private:
    ScoreInputs in_;
    Mask mask_;
    ScoreResult result_;
  };
};

TEST_P(BackwardOn, FollowsF64InTurnsAndAsItComes) {
  for (const bool hopper : hopper_or_not()) {
    allow_sm90(hopper);
    for (const Masked& m : masked()) {
      for (const bool deterministic : {true, false}) {
        ScoreOptions options;
        options.deterministic = deterministic;
        EXPECT_LT(errors(m.sizes, Dtype::bf16, m.mask, options).largest(), bound(Dtype::bf16))
            << m.name << ' ' << deterministic << ' ' << hopper;
      }
    }
  }
}

// In tiles of 64 and of 128 columns.
TEST_P(BackwardOn, FollowsF64WithEveryFeature) {
  std::vector<int32_t> ids(200);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i / 90);
  const Tensor documents = Tensor::from(ids, {1, 200});
  for (const bool hopper : hopper_or_not()) {
    allow_sm90(hopper);
    for (const int64_t D : {48, 80}) {
      ScoreInputs low = inputs({1, 4, 2, 200, 200, D, D}, Dtype::bf16);
      low.sink = Tensor::from(std::vector<float>{0.5f, -1.0f, 1.0f, 0.0f}, {4});
      low.alibi_slopes = alibi_slopes(4);
      ScoreOptions options;
      options.softcap = 2.0;
      options.rope = Rope::half;
      options.dropout = 0.2;
      options.rng = RngKey(1, "dropout", "x");
      const Mask mask = Mask().causal().window(150, -1).documents(documents, documents);
      ScoreInputs wide = low;
      for (Tensor* t : {&wide.q, &wide.k, &wide.v, &wide.sink}) *t = t->to(Dtype::f64);
      const ScoreInputs moved = on(device(), low);
      const Tensor dout = random_tensor({1, 4, 200, D}, "dout", Dtype::bf16);
      const ScoreResult wanted = softmax_forward(wide, mask, options),
                        found = softmax_forward(moved, mask.to(device()), options);
      const ScoreGrads want = softmax_backward(dout, wanted, wide, mask, options),
                       got = softmax_backward(dout.to(device()), found, moved, mask.to(device()),
                                              options);
      EXPECT_LT(relative_error(got.dq, want.dq), bound(Dtype::bf16)) << D << ' ' << hopper;
      EXPECT_LT(relative_error(got.dk, want.dk), bound(Dtype::bf16)) << D << ' ' << hopper;
      EXPECT_LT(relative_error(got.dv, want.dv), bound(Dtype::bf16)) << D << ' ' << hopper;
      EXPECT_LT(relative_error(got.dsink, want.dsink), bound(Dtype::bf16)) << D << ' ' << hopper;
    }
  }
}

TEST_P(BackwardOn, InTurnsGivesTheSameBitsInAnyOrderOfThreads) {
  ScoreOptions as_it_comes;
  as_it_comes.deterministic = false;
  for (const bool hopper : hopper_or_not()) {
    allow_sm90(hopper);
    [[maybe_unused]] uint64_t seed = hopper ? 1 : 2;  // one of two, in turns
    for (const Masked& m : masked()) {
      const Gradients gradients(m);
      const auto expected = gradients({});
      const auto any = gradients(as_it_comes);
      EXPECT_EQ(any[1], expected[1]) << m.name;
      EXPECT_EQ(any[2], expected[2]) << m.name;
#if defined(FOVEA_INTERPRETED)
      const int threads = num_threads();
      seed = 3 - seed;
      const auto before = interpreted::set_seed(seed);
      set_num_threads(seed == 1 ? 1 : 4);
      EXPECT_EQ(gradients({}), expected) << m.name << ", lanes in order " << seed;
      set_num_threads(threads);
      interpreted::set_seed(before);
#endif
    }
  }
}

FOVEA_ON_DEVICES(BackwardOn);

TEST_P(ScoreOn, WhatADeviceLacksIsNamed) {
  if (device().is_cpu()) return;
  const auto message = [](const ScoreRule& rule, const ScoreInputs& in) -> std::string {
    try {
      score_forward(rule, in, {}, {});
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const std::string where(name(device().kind));
  ScoreInputs in = on(device(), inputs({1, 1, 1, 5, 5, 4, 4}, Dtype::f32));
  EXPECT_EQ(message(kSigmoidRule, in), "score: this rule has no kernels for device " + where);
  in.v = in.v.to(kCpu);
  EXPECT_EQ(message(softmax_rule(), in), "score: q is on " + where + " but another operand on cpu");
}

FOVEA_ON_DEVICES(ScoreOn);

}  // namespace
}  // namespace fovea::attention
