// SPDX-License-Identifier: Apache-2.0
#pragma once
// A device's work, captured once and launched again as a whole (CUDA graphs): the card is given
// thousands of kernels in one call, and the host does not stand in their way.
//
//   Graph graph = Graph::capture(device, [&] { y = f(host_input(...)); });
//   graph.replay();  // y's memory holds f of what the inputs are now
//
// Capture runs f on the host and keeps the kernels, copies, fills and library calls it queues, with
// their arguments, instead of doing them. So a replay does the same to the same memory, and what
// changes between replays has to lie there:
//
//   host_input     values that the host writes again before every replay
//   host_constant  values that the host has once
//
// Everything else that joins host and device (a tensor that is copied to or from the host, item(),
// an event, another stream) is an error in a captured region. So is f's dependence on values: it
// takes the branches of the capture.
//
// Memory that f allocates belongs to the graph: others get it when the graph is gone and its
// tensors are. What was allocated before and is dropped in f is kept as long. Tensors that f reads
// and that live elsewhere must outlive the graph.
//
// f should have run before, as it is: what is made when first needed (algorithms of libraries,
// tables, loaded kernels) is then there.

#include <functional>
#include <memory>

#include "core/tensor.h"

namespace fovea {

class Graph {
 public:
  // Throws what f throws, and for the cpu, which has no graphs. One capture at a time and thread.
  static Graph capture(Device device, const std::function<void()>& f);
  ~Graph();
  Graph(Graph&&) noexcept;
  Graph& operator=(Graph&&) noexcept;

  // Queues it all on the current stream; throws what a host_input's fill throws, having queued
  // nothing.
  void replay();

  Device device() const;
  int64_t bytes() const;  // of the graph's own memory

  struct State;

 private:
  explicit Graph(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Whether this host thread captures work of the device.
bool is_capturing(Device device);

// A contiguous tensor on the device that fill(memory) writes on the host: now; or, in a captured
// region, before every replay, into one block with the other inputs. fill writes all of it, and
// keeps what it reads.
Tensor host_input(const Shape& shape, Dtype dtype, Device device,
                  std::function<void(void* memory)> fill);
// `source`, a tensor of the host, on the device; in a captured region it is copied when it is
// captured, and whatever its storage holds later does not count.
Tensor host_constant(const Tensor& source, Device device);

// What the host does for the interpreted device in place of a library: now, or at every replay.
void host_work(Device device, std::function<void()> work);

}  // namespace fovea
