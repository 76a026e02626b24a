// SPDX-License-Identifier: Apache-2.0
#pragma once
// Streams, events and captured work of the devices that run CUDA source. What a caller uses is
// core/stream.h and core/graph.h; these are the two implementations beneath (core/card/,
// core/interpreter/).

#include "core/cuda/gpu.h"

namespace fovea {

// The words for what a stream cannot do while it is captured: "graph: <what> in a captured region".
[[noreturn]] void fail_in_capture(const std::string& what);

}  // namespace fovea

FOVEA_GPU_DECLARE(
    // A stream that waits for no other. It lasts as long as the program.
    Stream make_stream(int card);

    void* make_event(bool timed); void free_event(void* event) noexcept;
    // The work that is queued on the stream now ends before the event.
    void record_event(void* event, Stream stream);
    // The stream's work from now on begins after the event.
    void await_event(void* event, Stream stream);
    // The host waits.
    void synchronize_event(void* event);
    // Between two timed events that are over.
    double milliseconds(void* from, void* to);
    // What `first` has queued ends before what `second` does next. Nothing, where it cannot be had.
    void put_behind(Stream second, Stream first) noexcept;

    // From begin to end, what is queued on the stream is not done but kept. end gives it, ready to
    // be launched again and again; or null where the work cannot be kept whole.
    bool is_capturing(Stream stream); void begin_capture(Stream stream);
    void* end_capture(Stream stream); void launch_graph(void* graph, Stream stream);
    void free_graph(void* graph) noexcept;)
