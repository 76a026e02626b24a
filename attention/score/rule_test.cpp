// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "attention/score/cuda/rules_test.h"
#include "attention/score/score_test_util.h"
#include "core/testing/devices.h"

namespace fovea::attention {
namespace {

TEST(Score, OtherRulesAreTheirDefinitionToo) {
  const Sizes sizes{2, 4, 2, 70, 75, 8, 12};
  for (const ScoreRule* rule : {&kSigmoidRule, &kSquaredReluRule}) {
    for (const bool few : {false, true}) {
      Sizes z = sizes;
      if (few) z.N = 3;
      ScoreInputs in = inputs(z, Dtype::f64);
      const Mask mask = Mask().causal().window(40, -1);
      const Tensor wanted = reference(in, mask, {}, *rule);
      EXPECT_LT(relative_error(score_forward(*rule, in, mask, {}).out, wanted), 1e-12)
          << rule->normalised << few;
      for (Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        EXPECT_LT(relative_error(score_forward(*rule, inputs(z, dtype), mask, {}).out, wanted),
                  dtype == Dtype::f32 ? 1e-6 : 1e-2)
            << rule->normalised << few;
      }
      const Tensor dout = random_tensor({z.B, z.H, z.N, z.Dv}, "dout");
      const ScoreGrads grads =
          score_backward(*rule, dout, score_forward(*rule, in, mask, {}), in, mask, {});
      const auto objective = [&] {
        const auto out = reference(in, mask, {}, *rule).to_vector<double>(),
                   d = dout.to_vector<double>();
        double total = 0.0;
        for (size_t i = 0; i < out.size(); ++i) total += out[i] * d[i];
        return total;
      };
      for (const auto& [x, gradient] :
           {std::pair{in.q, grads.dq}, std::pair{in.k, grads.dk}, std::pair{in.v, grads.dv}}) {
        const auto found = gradient.to_vector<double>();
        for (int64_t e = 0; e < x.numel(); e += x.numel() / 5) {
          double& value = x.data<double>()[e];
          const double before = value;
          value = before + 1e-5;
          const double above = objective();
          value = before - 1e-5;
          const double below = objective();
          value = before;
          EXPECT_NEAR(found[static_cast<size_t>(e)], (above - below) / 2e-5,
                      1e-6 * std::max(1.0, std::abs(found[static_cast<size_t>(e)])));
        }
      }
    }
  }
  ScoreInputs with_sink = inputs(sizes, Dtype::f32);
  with_sink.sink = Tensor::zeros({4});
  EXPECT_THROW(score_forward(kSigmoidRule, with_sink, {}, {}), Error);
}

class Rules : public OnDevices {
 protected:
  static ScoreRule sigmoid() {
    return on_devices(
        kSigmoidRule,
        [](Device d, const ScoreCall& c) { FOVEA_GPU_CALL(d, sigmoid_forward, c, stream_of(d)); },
        [](Device d, const ScoreCall& c) { FOVEA_GPU_CALL(d, sigmoid_backward, c, stream_of(d)); });
  }
  static ScoreRule squared_relu() {
    return on_devices(
        kSquaredReluRule,
        [](Device d, const ScoreCall& c) {
          FOVEA_GPU_CALL(d, squared_relu_forward, c, stream_of(d));
        },
        [](Device d, const ScoreCall& c) {
          FOVEA_GPU_CALL(d, squared_relu_backward, c, stream_of(d));
        });
  }
};

TEST_P(Rules, FollowF64OnEveryDevice) {
  for (const ScoreRule& rule : {sigmoid(), squared_relu()}) {
    for (const int64_t n : {3, 5, 40}) {
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        const int64_t keys = n == 3 ? 600 : 45;  // few queries: keys are split
        const int64_t dim = n == 5 ? 260 : 8;    // past the widest tile
        if (n == 5 && dtype == Dtype::bf16) continue;
        const ScoreInputs low = inputs({2, 4, 2, n, keys, dim, 16}, dtype),
                          moved = on(device(), low);
        ScoreInputs wide = low;
        for (Tensor* t : {&wide.q, &wide.k, &wide.v}) *t = t->to(Dtype::f64);
        const Mask mask = Mask().causal();
        const Tensor dout = random_tensor({2, 4, n, 16}, "dout", dtype);
        const ScoreResult wanted = score_forward(rule, wide, mask, {}),
                          found = score_forward(rule, moved, mask, {});
        const ScoreGrads want = score_backward(rule, dout, wanted, wide, mask, {}),
                         got = score_backward(rule, dout.to(device()), found, moved, mask, {});
        const double bound = dtype == Dtype::f32 ? 1e-5 : 2e-2;
        EXPECT_LT(relative_error(found.out, wanted.out), bound) << rule.normalised << dtype;
        EXPECT_LT(relative_error(found.lse, wanted.lse), bound) << rule.normalised << dtype;
        EXPECT_LT(relative_error(got.dq, want.dq), bound) << rule.normalised << dtype;
        EXPECT_LT(relative_error(got.dk, want.dk), bound) << rule.normalised << dtype;
        EXPECT_LT(relative_error(got.dv, want.dv), bound) << rule.normalised << dtype;
      }
    }
  }
}

FOVEA_ON_DEVICES(Rules);

}  // namespace
}  // namespace fovea::attention
