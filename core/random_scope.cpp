// SPDX-License-Identifier: Apache-2.0
#include "core/random_scope.h"

#include <utility>

#include "core/error.h"

namespace fovea {
namespace {

thread_local const RandomScope::State* t_innermost = nullptr;

}  // namespace

RandomScope::RandomScope(const State& state)
    : state_(state), before_(std::exchange(t_innermost, &state_)) {}
RandomScope::~RandomScope() { t_innermost = before_; }

const RandomScope::State* RandomScope::current_or_null() { return t_innermost; }

const RandomScope::State& RandomScope::current() {
  FOVEA_CHECK(t_innermost != nullptr,
              "random: a training forward with dropout needs a RandomScope (seed, step)");
  return *t_innermost;
}

}  // namespace fovea
