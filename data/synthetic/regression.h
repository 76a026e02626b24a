// SPDX-License-Identifier: Apache-2.0
#pragma once
// In-context linear regression (2208.01066 section 3) in tokens: every sequence has its own weights
// w ~ N(0, I), shown through examples x ~ N(0, I), y = w . x / sqrt(dim) + noise, each number
// rounded to one of `bins` equal bins of
// [-range, range].

#include "data/synthetic/sequences.h"

namespace fovea::data {

struct RegressionOptions : SequenceOptions {
  int64_t dim = 3;
  int64_t bins = 32;
  double range = 3.0;  // values beyond fall into the outermost bins
  double noise = 0.0;  // standard deviation
  void describe(config::Fields& f) override;
};

// x1 .. xd y x1 .. xd y ...: x has ids [0, bins), y [bins, 2 bins). Scored at each xd, where y must
// follow.
std::unique_ptr<Source> make_regression(const RegressionOptions& options, Split split);

}  // namespace fovea::data
