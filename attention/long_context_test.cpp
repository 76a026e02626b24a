// SPDX-License-Identifier: Apache-2.0
// The masks of 2510.17896 against the independent reference's golden files.
#include "attention/long_context_test_util.h"
#include "attention/score/score_test_util.h"
#include "core/testing/devices.h"

namespace fovea::attention {
namespace {

class LongContext : public OnDevices {};

TEST_P(LongContext, GoldenFilesHoldInEveryDtype) {
  const auto cases = long_context_cases();
  EXPECT_EQ(cases.size(), 16u);
  for (const LongContextCase& c : cases) {
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      if (dtype == Dtype::f64 && !has_f64()) continue;
      const auto here = [&](const Tensor& x) { return x.to(dtype).to(device()); };
      const ScoreInputs in{here(c.q), here(c.k), here(c.v), Tensor(), Tensor()};
      const Mask mask = c.mask.to(device());
      const ScoreResult result = softmax_forward(in, mask, {});
      const ScoreGrads grads = softmax_backward(here(c.dout), result, in, mask, {});
      const double out = dtype == Dtype::f64   ? 1e-9
                         : dtype == Dtype::f32 ? 1e-5
                                               : 2e-2,
                   gradient = dtype == Dtype::f32 ? 1e-4 : out;
      EXPECT_LT(relative_error(result.out, c.out), out) << c.name << ' ' << dtype;
      EXPECT_LT(relative_error(grads.dq, c.dq), gradient) << c.name << ' ' << dtype;
      EXPECT_LT(relative_error(grads.dk, c.dk), gradient) << c.name << ' ' << dtype;
      EXPECT_LT(relative_error(grads.dv, c.dv), gradient) << c.name << ' ' << dtype;
    }
  }
}
FOVEA_ON_DEVICES(LongContext);

}  // namespace
}  // namespace fovea::attention
