// SPDX-License-Identifier: Apache-2.0
#include "data/synthetic/state_tracking.h"

#include <array>
#include <map>
#include <numeric>

namespace fovea::data {

void StateTrackingOptions::describe(config::Fields& f) {
  SequenceOptions::describe(f);
  f.add("group", group, "whose products are asked for",
        config::one_of({"parity", "cyclic", "s3", "a5", "s5"}));
  f.add("modulus", modulus, "order of the cyclic group", config::from_to(2, 4096));
}

namespace {

// table[a n + b] = b after a, for a group of n elements
struct Group {
  int64_t order;
  std::vector<int64_t> table;
};

Group cyclic(int64_t n) {
  Group group{n, {}};
  for (int64_t a = 0; a < n; ++a) {
    for (int64_t b = 0; b < n; ++b) group.table.push_back((a + b) % n);
  }
  return group;
}

// Permutations of `points` in lexical order, all or the even ones.
Group permutations(size_t points, bool even_only) {
  using Permutation = std::vector<size_t>;
  Permutation p(points);
  std::iota(p.begin(), p.end(), size_t{0});
  std::map<Permutation, int64_t> index;
  std::vector<Permutation> all;
  do {
    size_t inversions = 0;
    for (size_t i = 0; i < points; ++i) {
      for (size_t j = i + 1; j < points; ++j) inversions += p[i] > p[j];
    }
    if (even_only && inversions % 2 != 0) continue;
    index[p] = static_cast<int64_t>(all.size());
    all.push_back(p);
  } while (std::next_permutation(p.begin(), p.end()));
  Group group{static_cast<int64_t>(all.size()), {}};
  for (const Permutation& a : all) {
    for (const Permutation& b : all) {
      Permutation product(points);
      for (size_t i = 0; i < points; ++i) product[i] = b[a[i]];
      group.table.push_back(index.at(product));
    }
  }
  return group;
}

Group make_group(const StateTrackingOptions& options) {
  if (options.group == "parity") return cyclic(2);
  if (options.group == "cyclic") return cyclic(options.modulus);
  return permutations(options.group == "s3" ? 3 : 5, options.group == "a5");
}

class StateTrackingSource final : public SequenceSource {
 public:
  StateTrackingSource(const StateTrackingOptions& options, Split split, Group group)
      : SequenceSource("state_tracking." + options.group, group.order, options, split),
        group_(std::move(group)) {}

 private:
  void fill(Draw& draw, int64_t* inputs, int64_t* targets) const override {
    int64_t state = 0;  // the identity
    for (int64_t i = 0; i < context(); ++i) {
      inputs[i] = draw.below(group_.order);
      targets[i] = state = group_.table[static_cast<size_t>(state * group_.order + inputs[i])];
    }
  }
  Group group_;
};

}  // namespace

std::unique_ptr<Source> make_state_tracking(const StateTrackingOptions& options, Split split) {
  return std::make_unique<StateTrackingSource>(options, split, make_group(options));
}

}  // namespace fovea::data
