// SPDX-License-Identifier: Apache-2.0
#pragma once
// Draws for made-up sequences, in order, from one stream.

#include <algorithm>
#include <vector>

#include "core/rng.h"
#include "data/source.h"

namespace fovea::data {

// Made-up data are the same in every run, whatever the run's seed.
inline constexpr uint64_t kSyntheticSeed = 0x0f0e3a;

class Draw {
 public:
  explicit Draw(const RngKey& rng) : rng_(rng) {}
  // In [0, n)
  int64_t below(int64_t n) { return static_cast<int64_t>(random_below(rng_, next_++, static_cast<uint64_t>(n))); }
  // `count` different numbers of [0, n), in random order (Floyd's sampling, then a shuffle).
  std::vector<int64_t> distinct(int64_t count, int64_t n) {
    std::vector<int64_t> chosen;
    for (int64_t j = n - count; j < n; ++j) {
      const int64_t candidate = below(j + 1);
      chosen.push_back(std::find(chosen.begin(), chosen.end(), candidate) == chosen.end() ? candidate : j);
    }
    for (size_t i = chosen.size(); i > 1; --i) std::swap(chosen[i - 1], chosen[static_cast<size_t>(below(static_cast<int64_t>(i)))]);
    return chosen;
  }

 private:
  RngKey rng_;
  uint64_t next_ = 0;
};

// Inputs [batch, context] not yet filled, and targets that are all kIgnore.
inline Batch token_batch(int64_t batch, int64_t context) {
  return {Tensor::empty({batch, context}, Dtype::i64), Tensor::full({batch, context}, static_cast<double>(kIgnore), Dtype::i64), {}};
}

}  // namespace fovea::data
