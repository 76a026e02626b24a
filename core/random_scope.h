// SPDX-License-Identifier: Apache-2.0
#pragma once
// Randomness inside a forward pass. While one lives on this thread, dropout and the like draw from
// (seed, module path, step), and element `index` counts from the first sample of the GLOBAL batch,
// so that a split over ranks or micro-batches changes nothing. Recomputation re-establishes the
// scope of the first run.

#include <cstdint>

namespace fovea {

class RandomScope {
 public:
  struct State {
    uint64_t seed = 0;
    uint64_t step = 0;
    int64_t first_sample = 0;
    // Where a captured step reads its number (RngKey::step_at), or null. It outlives the scope.
    const uint64_t* step_at = nullptr;
  };

  explicit RandomScope(const State& state);
  RandomScope(uint64_t seed, uint64_t step, int64_t first_sample = 0)
      : RandomScope(State{seed, step, first_sample}) {}
  ~RandomScope();
  RandomScope(const RandomScope&) = delete;
  RandomScope& operator=(const RandomScope&) = delete;

  // The innermost one alive on this thread, or null.
  static const State* current_or_null();
  // Throws when none is alive: a training forward with dropout needs one.
  static const State& current();

 private:
  State state_;
  const State* before_;
};

}  // namespace fovea
