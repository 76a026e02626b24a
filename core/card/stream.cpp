// SPDX-License-Identifier: Apache-2.0
#include "core/cuda/stream.h"

#include "core/card/runtime.h"

namespace fovea::cuda {
namespace {

cudaStream_t handle(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }
cudaEvent_t event_of(void* event) { return static_cast<cudaEvent_t>(event); }

}  // namespace

// A blocking stream would wait for the legacy default one, which a captured stream may not.
Stream make_stream(int card) {
  int before = 0;
  FOVEA_CUDA_CHECK(cudaGetDevice(&before));
  FOVEA_CUDA_CHECK(cudaSetDevice(card));
  cudaStream_t stream = nullptr;
  FOVEA_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  FOVEA_CUDA_CHECK(cudaSetDevice(before));
  return {stream};
}

void* make_event(bool timed) {
  cudaEvent_t event = nullptr;
  FOVEA_CUDA_CHECK(
      cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming));
  return event;
}

void free_event(void* event) noexcept { cudaEventDestroy(event_of(event)); }

void record_event(void* event, Stream stream) {
  FOVEA_CUDA_CHECK(cudaEventRecord(event_of(event), handle(stream)));
}

void await_event(void* event, Stream stream) {
  FOVEA_CUDA_CHECK(cudaStreamWaitEvent(handle(stream), event_of(event), 0));
}

void synchronize_event(void* event) { FOVEA_CUDA_CHECK(cudaEventSynchronize(event_of(event))); }

double milliseconds(void* from, void* to) {
  float ms = 0.0f;
  FOVEA_CUDA_CHECK(cudaEventElapsedTime(&ms, event_of(from), event_of(to)));
  return static_cast<double>(ms);
}

// Where memory is freed, which cannot fail: a card that takes no event does no work either.
void put_behind(Stream second, Stream first) noexcept {
  cudaEvent_t event = nullptr;
  if (cudaEventCreateWithFlags(&event, cudaEventDisableTiming) != cudaSuccess) return;
  if (cudaEventRecord(event, handle(first)) == cudaSuccess)
    cudaStreamWaitEvent(handle(second), event, 0);
  cudaEventDestroy(event);
}

bool is_capturing(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  FOVEA_CUDA_CHECK(cudaStreamIsCapturing(handle(stream), &status));
  return status != cudaStreamCaptureStatusNone;
}

// Relaxed: the captured work's memory may come from the driver (cudaMalloc) meanwhile.
void begin_capture(Stream stream) {
  FOVEA_CUDA_CHECK(cudaStreamBeginCapture(handle(stream), cudaStreamCaptureModeRelaxed));
}

void* end_capture(Stream stream) {
  cudaGraph_t graph = nullptr;
  const cudaError_t status = cudaStreamEndCapture(handle(stream), &graph);
  if (status != cudaSuccess || graph == nullptr) {
    cudaGetLastError();  // not sticky: clear it
    return nullptr;
  }
  cudaGraphExec_t ready = nullptr;
  const cudaError_t instantiated = cudaGraphInstantiate(&ready, graph, 0);
  cudaGraphDestroy(graph);
  check(instantiated, "cudaGraphInstantiate");
  return ready;
}

void launch_graph(void* graph, Stream stream) {
  FOVEA_CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), handle(stream)));
}

void free_graph(void* graph) noexcept { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

}  // namespace fovea::cuda
