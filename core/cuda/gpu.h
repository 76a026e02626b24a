// SPDX-License-Identifier: Apache-2.0
#pragma once
// Kernels for the two devices that run CUDA source: a card (namespace fovea::cuda, made by nvcc)
// and the interpreted device (namespace fovea::interpreted, made by the C++ compiler from the same
// .cu; core/interpreter/machine.h). The host side of a kernel is a function that both namespaces
// have:
//
//   FOVEA_GPU_DECLARE(void gelu_forward(float* y, const float* x, int64_t n, Stream stream);)
//   FOVEA_GPU_CALL(device, gelu_forward, y, x, n, stream_of(device));
//
// FOVEA_CUDA and FOVEA_INTERPRETED say which of them this build has (CMake option FOVEA_CUDA).

#include <cstdlib>

#include "core/device.h"
#include "core/error.h"

namespace fovea {

// Work queued on it is done in order (core/stream.h). On the interpreted device work has ended when
// the call that queues it returns, but on a stream that is captured.
struct Stream {
  void* handle = nullptr;  // a cudaStream_t; an interpreted::Queue, null: the main one
  friend bool operator==(const Stream&, const Stream&) = default;
};
// The stream on which this host thread's work for a device goes.
Stream stream_of(Device device);

namespace detail {
template <typename... T>
void ignore(const T&...) {}
// What a call of a function that is not in this build is worth: a value of any type, never made.
struct Nothing {
  template <typename T>
  operator T() const {
    std::abort();
  }
};
}  // namespace detail

}  // namespace fovea

#define FOVEA_GPU_DECLARE(...)   \
  namespace fovea::cuda {        \
  __VA_ARGS__                    \
  }                              \
  namespace fovea::interpreted { \
  __VA_ARGS__                    \
  }

#if defined(FOVEA_CUDA) && defined(FOVEA_INTERPRETED)
#define FOVEA_GPU_CALL(device, function, ...)                                          \
  ((device).kind == ::fovea::Device::Kind::cuda ? ::fovea::cuda::function(__VA_ARGS__) \
                                                : ::fovea::interpreted::function(__VA_ARGS__))
#elif defined(FOVEA_CUDA)
#define FOVEA_GPU_CALL(device, function, ...) ::fovea::cuda::function(__VA_ARGS__)
#elif defined(FOVEA_INTERPRETED)
#define FOVEA_GPU_CALL(device, function, ...) ::fovea::interpreted::function(__VA_ARGS__)
#else
#define FOVEA_GPU_CALL(device, function, ...)                                     \
  (::fovea::detail::ignore(__VA_ARGS__),                                          \
   ::fovea::detail::fail(#function ": device ", device, " is not in this build"), \
   ::fovea::detail::Nothing{})
#endif
