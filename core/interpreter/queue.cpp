// SPDX-License-Identifier: Apache-2.0
#include "core/interpreter/queue.h"

#include <chrono>
#include <memory>
#include <utility>

namespace fovea::interpreted {
namespace {

using Clock = std::chrono::steady_clock;

struct Event {
  Clock::time_point at;
};

}  // namespace

Stream make_stream(int) { return {new Queue}; }

void* make_event(bool) { return new Event; }
void free_event(void* event) noexcept { delete static_cast<Event*>(event); }
void record_event(void* event, Stream) { static_cast<Event*>(event)->at = Clock::now(); }
void await_event(void*, Stream) {}
void synchronize_event(void*) {}
double milliseconds(void* from, void* to) {
  return std::chrono::duration<double, std::milli>(static_cast<Event*>(to)->at -
                                                   static_cast<Event*>(from)->at)
      .count();
}
void put_behind(Stream, Stream) noexcept {}

bool is_capturing(Stream stream) { return tape_of(stream) != nullptr; }

void begin_capture(Stream stream) {
  FOVEA_CHECK(stream.handle != nullptr && tape_of(stream) == nullptr,
              "interpreter: capture begins on a stream of its own, once");
  static_cast<Queue*>(stream.handle)->captured = true;
}

void* end_capture(Stream stream) {
  auto* queue = static_cast<Queue*>(stream.handle);
  queue->captured = false;
  return new Tape(std::exchange(queue->tape, {}));
}

void launch_graph(void* graph, Stream) {
  for (const auto& work : *static_cast<const Tape*>(graph)) work();
}

void free_graph(void* graph) noexcept { delete static_cast<Tape*>(graph); }

}  // namespace fovea::interpreted
