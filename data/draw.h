// SPDX-License-Identifier: Apache-2.0
#pragma once
// Random choices taken one after another from one stream.

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/rng.h"

namespace fovea::data {

class Draw {
 public:
  explicit Draw(const RngKey& rng) : rng_(rng) {}
  // In [0, n)
  int64_t below(int64_t n) {
    return static_cast<int64_t>(random_below(rng_, next_++, static_cast<uint64_t>(n)));
  }
  // In [0, 1), 53 bits
  double uniform() { return static_cast<double>(below(int64_t{1} << 53)) * 0x1p-53; }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  bool coin(double probability) { return uniform() < probability; }
  // Box-Muller, one of the pair
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(6.283185307179586 * uniform());
  }
  // Beta(a, a) by Joehnk's rejection: fit for small a.
  double beta(double a) {
    while (true) {
      const double x = std::pow(uniform(), 1.0 / a), y = std::pow(uniform(), 1.0 / a);
      if (x + y > 0.0 && x + y <= 1.0) return x / (x + y);
    }
  }
  // `count` different numbers of [0, n), in random order (Floyd's sampling, then a shuffle).
  std::vector<int64_t> distinct(int64_t count, int64_t n) {
    std::vector<int64_t> chosen;
    for (int64_t j = n - count; j < n; ++j) {
      const int64_t candidate = below(j + 1);
      chosen.push_back(
          std::find(chosen.begin(), chosen.end(), candidate) == chosen.end() ? candidate : j);
    }
    for (size_t i = chosen.size(); i > 1; --i)
      std::swap(chosen[i - 1], chosen[static_cast<size_t>(below(static_cast<int64_t>(i)))]);
    return chosen;
  }

 private:
  RngKey rng_;
  uint64_t next_ = 0;
};

}  // namespace fovea::data
