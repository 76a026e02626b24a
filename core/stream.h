// SPDX-License-Identifier: Apache-2.0
#pragma once
// Streams: queues of a device's work, each done in order. What two of them do in which order only
// events say. A host thread's work goes on the device's main stream, which all threads share, until
// a StreamScope names another.
//
//   const SideStream side(device);
//   Event ready(device), done(device);
//   ready.record();                      // x is there
//   {
//     const StreamScope scope(side);
//     ready.wait();                      // what follows on `side` begins after it
//     y = f(x);
//     done.record();
//   }
//   done.wait();                         // and the main stream may read y
//
// Memory belongs to the stream that was current when it was allocated, and only work of that stream
// gets it again. A tensor dropped while another stream is current has been used there: the owner's
// later work waits for what that stream has queued by then.
//
// The cpu has one stream, done at once; so has the interpreted device, whatever they are called.

#include <utility>

#include "core/cuda/gpu.h"

namespace fovea {

// A stream beside the main one. It comes from a pool and goes back there, with its work still
// queued and its memory kept.
class SideStream {
 public:
  explicit SideStream(Device device);
  ~SideStream();
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;

  Device device() const { return device_; }
  Stream stream() const { return stream_; }

 private:
  Device device_;
  Stream stream_;
};

// While one lives, stream_of(device) is this stream for the calling host thread. Scopes nest.
class StreamScope {
 public:
  explicit StreamScope(const SideStream& side) : StreamScope(side.device(), side.stream()) {}
  StreamScope(Device device, Stream stream);
  ~StreamScope();
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

  struct Entry {
    Device device;
    Stream stream;
    const Entry* outer;
  };

 private:
  Entry entry_;
};

// A point in a stream's work.
class Event {
 public:
  explicit Event(Device device, bool timed = false);
  ~Event();
  Event(Event&& other) noexcept
      : device_(other.device_),
        timed_(other.timed_),
        recorded_(other.recorded_),
        event_(std::exchange(other.event_, nullptr)) {}
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // Behind what the current stream has queued.
  void record();
  // What the current stream does next begins after the event. Throws when it was never recorded.
  void wait() const;
  // The host waits. Throws when it was never recorded.
  void synchronize() const;
  // From `earlier` to this one, both timed; the host waits for them.
  double milliseconds_since(const Event& earlier) const;

 private:
  void check_recorded(const char* what) const;

  Device device_;
  bool timed_, recorded_ = false;
  void* event_ = nullptr;
};

// The host waits for what the current stream has queued.
void synchronize(Device device);

}  // namespace fovea
