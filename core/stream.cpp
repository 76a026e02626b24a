// SPDX-License-Identifier: Apache-2.0
#include "core/stream.h"

#include <chrono>
#include <map>
#include <mutex>
#include <vector>

#include "core/cuda/device.h"
#include "core/cuda/stream.h"
#include "core/graph.h"

namespace fovea {
namespace {

constinit thread_local const StreamScope::Entry* t_innermost = nullptr;

// The streams of a card, never destroyed: tensors with static lifetime are freed on them.
struct Streams {
  std::mutex mutex;
  std::map<int, Stream> main;                                        // by card
  std::map<std::pair<Device::Kind, int>, std::vector<Stream>> idle;  // side streams
};
Streams& streams() {
  static auto* all = new Streams;
  return *all;
}

// The interpreted device's is null, which is never captured.
Stream main_stream([[maybe_unused]] Device device) {
#if defined(FOVEA_CUDA)
  if (device.kind == Device::Kind::cuda) {
    thread_local std::pair<int, Stream> known{-1, {}};
    if (known.first != device.index) {
      Streams& all = streams();
      const std::lock_guard lock(all.mutex);
      Stream& main = all.main[device.index];
      if (main.handle == nullptr) main = cuda::make_stream(device.index);
      known = {device.index, main};
    }
    return known.second;
  }
#endif
  return {};
}

double now_ms() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

Stream stream_of(Device device) {
  for (const StreamScope::Entry* scope = t_innermost; scope != nullptr; scope = scope->outer)
    if (scope->device == device) return scope->stream;
  return main_stream(device);
}

SideStream::SideStream(Device device) : device_(device) {
  if (device.is_cpu()) return;
  Streams& all = streams();
  const std::lock_guard lock(all.mutex);
  std::vector<Stream>& idle = all.idle[{device.kind, device.index}];
  if (idle.empty()) {
    stream_ = FOVEA_GPU_CALL(device, make_stream, device.index);
  } else {
    stream_ = idle.back();
    idle.pop_back();
  }
}

SideStream::~SideStream() {
  if (device_.is_cpu()) return;
  Streams& all = streams();
  const std::lock_guard lock(all.mutex);
  all.idle[{device_.kind, device_.index}].push_back(stream_);
}

StreamScope::StreamScope(Device device, Stream stream) : entry_{device, stream, t_innermost} {
  if (is_capturing(device)) fail_in_capture("another stream");
  t_innermost = &entry_;
}
StreamScope::~StreamScope() { t_innermost = entry_.outer; }

// ---- events -------------------------------------------------------------------------------------

// On the cpu an event is a time.
Event::Event(Device device, bool timed) : device_(device), timed_(timed) {
  if (device.is_cpu())
    event_ = new double(0.0);
  else
    event_ = FOVEA_GPU_CALL(device, make_event, timed);
}

Event::~Event() {
  if (event_ == nullptr) return;
  if (device_.is_cpu())
    delete static_cast<double*>(event_);
  else
    FOVEA_GPU_CALL(device_, free_event, event_);
}

void Event::check_recorded(const char* what) const {
  if (is_capturing(device_)) fail_in_capture("an event");
  FOVEA_CHECK(recorded_, "event: ", what, " an event that was never recorded");
}

void Event::record() {
  if (is_capturing(device_)) fail_in_capture("an event");
  if (device_.is_cpu())
    *static_cast<double*>(event_) = now_ms();
  else
    FOVEA_GPU_CALL(device_, record_event, event_, stream_of(device_));
  recorded_ = true;
}

void Event::wait() const {
  check_recorded("a stream waits for");
  if (!device_.is_cpu()) FOVEA_GPU_CALL(device_, await_event, event_, stream_of(device_));
}

void Event::synchronize() const {
  check_recorded("the host waits for");
  if (!device_.is_cpu()) FOVEA_GPU_CALL(device_, synchronize_event, event_);
}

double Event::milliseconds_since(const Event& earlier) const {
  FOVEA_CHECK(timed_ && earlier.timed_ && device_ == earlier.device_,
              "event: times lie between two timed events of one device");
  earlier.synchronize();
  synchronize();
  if (device_.is_cpu())
    return *static_cast<double*>(event_) - *static_cast<double*>(earlier.event_);
  return FOVEA_GPU_CALL(device_, milliseconds, earlier.event_, event_);
}

void synchronize(Device device) {
  if (!device.is_cpu()) FOVEA_GPU_CALL(device, synchronize, stream_of(device));
}

}  // namespace fovea
