// SPDX-License-Identifier: Apache-2.0
#include "core/graph.h"

#include <cstring>
#include <utility>
#include <vector>

#include "core/cuda/device.h"
#include "core/cuda/stream.h"
#include "core/stream.h"
#if defined(FOVEA_INTERPRETED)
#include "core/interpreter/queue.h"
#endif

namespace fovea {
namespace {

constexpr size_t kBoundary = 256;            // bytes: what loads and libraries like
constexpr size_t kSlab = size_t{256} << 10;  // bytes, at least

// Values of the host that go to the device in one copy.
class Slab {
 public:
  Slab(size_t bytes, Device device)
      : there_(Tensor::empty({static_cast<int64_t>(bytes)}, Dtype::u8, device)), here_(bytes) {}

  bool has_room(size_t bytes) const { return bytes <= here_.size() - used_; }
  // u8 [bytes] on the device; fill writes its values on the host.
  Tensor add(size_t bytes, std::function<void(void*)> fill) {
    const size_t at = used_;
    used_ = std::min(here_.size(), (at + bytes + kBoundary - 1) / kBoundary * kBoundary);
    parts_.push_back({at, std::move(fill)});
    return there_.slice(0, static_cast<int64_t>(at), static_cast<int64_t>(at + bytes));
  }
  void fill() {
    for (const Part& part : parts_) part.fill(here_.data() + part.at);
  }
  void send() const {
    [[maybe_unused]] const Device device = there_.device();
    FOVEA_GPU_CALL(device, copy_to_device, there_.raw(), here_.data(), used_, stream_of(device));
  }
  const Tensor& there() const { return there_; }

 private:
  struct Part {
    size_t at;
    std::function<void(void*)> fill;
  };
  Tensor there_;
  std::vector<std::byte> here_;
  std::vector<Part> parts_;
  size_t used_ = 0;
};

Tensor add(std::vector<Slab>& slabs, const Shape& shape, Dtype dtype, Device device,
           std::function<void(void*)> fill) {
  const auto bytes = static_cast<size_t>(shape.numel() * size_of(dtype));
  if (bytes == 0) return Tensor::empty(shape, dtype, device);
  if (slabs.empty() || !slabs.back().has_room(bytes)) {
    const MemoryLabel label("inputs of graphs");
    slabs.emplace_back(std::max(kSlab, bytes), device);
  }
  return slabs.back().add(bytes, std::move(fill)).as(dtype).view(shape);
}

}  // namespace

struct Graph::State {
  explicit State(Device device_) : device(device_), side(device_), ended(device_) {}
  // In this order: work is over, launches go, tensors go, memory goes.
  ~State() {
    try {
      if (launched) ended.synchronize();
    } catch (const Error&) {  // the card is lost, and its memory with it
    }
    if (work != nullptr) FOVEA_GPU_CALL(device, free_graph, work);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  const Device device;
  const SideStream side;
  std::unique_ptr<MemoryArena> memory;
  std::vector<Slab> inputs, constants;
  std::vector<Tensor> sent;  // constants that are there
  void* work = nullptr;
  Event ended;
  bool launched = false;
};

namespace {
constinit thread_local Graph::State* t_capture = nullptr;
}  // namespace

void fail_in_capture(const std::string& what) {
  detail::fail("graph: ", what,
               " in a captured region; there values come by host_input and host_constant "
               "(core/graph.h), and the host reads them after the replay");
}

bool is_capturing(Device device) { return t_capture != nullptr && t_capture->device == device; }

Graph::Graph(std::unique_ptr<State> state) : state_(std::move(state)) {}
Graph::~Graph() = default;
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;
Device Graph::device() const { return state_->device; }
int64_t Graph::bytes() const { return state_->memory->bytes(); }

Graph Graph::capture(Device device, const std::function<void()>& f) {
  FOVEA_CHECK(!device.is_cpu(), "graph: the cpu has none; work on it is done at once");
  FOVEA_CHECK(t_capture == nullptr, "graph: a capture in a captured region");
  auto state = std::make_unique<State>(device);
  // Before and not during the capture, for which the card cannot take memory back.
  release_cached(device);
  {
    const StreamScope scope(state->side);
    state->memory = std::make_unique<MemoryArena>(device);
    FOVEA_GPU_CALL(device, begin_capture, state->side.stream());
    t_capture = state.get();
    try {
      f();
    } catch (...) {
      t_capture = nullptr;
      state->memory->close();
      state->work = FOVEA_GPU_CALL(device, end_capture, state->side.stream());
      throw;
    }
    t_capture = nullptr;
    state->memory->close();
    state->work = FOVEA_GPU_CALL(device, end_capture, state->side.stream());
  }
  FOVEA_CHECK(state->work != nullptr, "graph: ", device,
              " could not keep the work of the captured region; a call in it is not allowed there");
  return Graph(std::move(state));
}

void Graph::replay() {
  State& s = *state_;
  if (is_capturing(s.device)) fail_in_capture("a replay");
  for (Slab& slab : s.inputs) slab.fill();
  if (s.launched) s.ended.wait();  // its inputs may be read until then
  for (Slab& slab : s.constants) {
    slab.fill();
    slab.send();
    s.sent.push_back(slab.there());
  }
  s.constants.clear();
  for (const Slab& slab : s.inputs) slab.send();
  FOVEA_GPU_CALL(s.device, launch_graph, s.work, stream_of(s.device));
  s.ended.record();
  s.launched = true;
}

Tensor host_input(const Shape& shape, Dtype dtype, Device device, std::function<void(void*)> fill) {
  if (is_capturing(device)) return add(t_capture->inputs, shape, dtype, device, std::move(fill));
  const Tensor here = Tensor::empty(shape, dtype);
  if (here.numel() > 0) fill(here.raw());
  return here.to(device);
}

Tensor host_constant(const Tensor& source, Device device) {
  if (!is_capturing(device)) return source.to(device);
  const Tensor values = source.clone();
  return add(t_capture->constants, values.shape(), values.dtype(), device, [values](void* memory) {
    std::memcpy(memory, values.raw(), static_cast<size_t>(values.bytes()));
  });
}

void host_work([[maybe_unused]] Device device, std::function<void()> work) {
#if defined(FOVEA_INTERPRETED)
  if (device.kind == Device::Kind::interpreted) {
    if (interpreted::Tape* tape = interpreted::tape_of(stream_of(device))) {
      tape->push_back(std::move(work));
      return;
    }
  }
#endif
  work();
}

}  // namespace fovea
