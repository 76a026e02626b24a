// SPDX-License-Identifier: Apache-2.0
#include "data/synthetic/regression.h"

namespace fovea::data {

void RegressionOptions::describe(config::Fields& f) {
  SequenceOptions::describe(f);
  f.add("dim", dim, "numbers of an example's x", config::from_to(1, 1 << 24));
  f.add("bins", bins, "into which a number is rounded", config::from_to(2, 1 << 24));
  f.add("range", range, "the bins cover [-range, range]", config::positive());
  f.add("noise", noise, "standard deviation added to y", config::at_least(0.0));
}

namespace {

class RegressionSource final : public SequenceSource {
 public:
  RegressionSource(const RegressionOptions& options, Split split)
      : SequenceSource("regression", 2 * options.bins, options, split), o_(options) {
    FOVEA_CHECK(o_.dim <= o_.context, "regression: an example takes ", o_.dim + 1,
                " tokens, but context is ", o_.context);
  }

 private:
  int64_t bin(double value) const {
    const double at = (value + o_.range) / (2.0 * o_.range) * static_cast<double>(o_.bins);
    return std::clamp(static_cast<int64_t>(std::floor(at)), int64_t{0}, o_.bins - 1);
  }
  void fill(Draw& draw, int64_t* inputs, int64_t* targets) const override {
    std::vector<double> w(static_cast<size_t>(o_.dim));
    for (double& value : w) value = draw.normal() / std::sqrt(static_cast<double>(o_.dim));
    for (int64_t at = 0; at + o_.dim <= context(); at += o_.dim + 1) {
      double y = 0.0;
      for (int64_t d = 0; d < o_.dim; ++d) {
        const double x = draw.normal();
        y += w[static_cast<size_t>(d)] * x;
        inputs[at + d] = bin(x);
      }
      if (o_.noise > 0.0) y += o_.noise * draw.normal();
      targets[at + o_.dim - 1] = o_.bins + bin(y);
      if (at + o_.dim < context()) inputs[at + o_.dim] = o_.bins + bin(y);
    }
  }
  RegressionOptions o_;
};

}  // namespace

std::unique_ptr<Source> make_regression(const RegressionOptions& options, Split split) {
  return std::make_unique<RegressionSource>(options, split);
}

}  // namespace fovea::data
