// SPDX-License-Identifier: Apache-2.0
#pragma once
// The interpreted device's streams. Work is done by the call that queues it, which keeps every
// order that events could ask for; on a stream that is captured it goes on a tape instead.

#include <functional>
#include <vector>

#include "core/cuda/stream.h"

namespace fovea::interpreted {

using Tape = std::vector<std::function<void()>>;

struct Queue {
  bool captured = false;
  Tape tape;
};

// Where the stream's work goes, or null: it is done at once.
inline Tape* tape_of(Stream stream) {
  auto* queue = static_cast<Queue*>(stream.handle);
  return queue != nullptr && queue->captured ? &queue->tape : nullptr;
}

}  // namespace fovea::interpreted
