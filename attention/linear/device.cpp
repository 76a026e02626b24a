// SPDX-License-Identifier: Apache-2.0
// The linear engine on GPU devices: working memory, then its kernels in order.
#include "attention/linear/device_call.h"
#include "attention/linear/passes.h"

namespace fovea::attention {

void linear_forward_device(const LinearProblem& p, const LinearInputs& in,
                           const LinearResult& result) {
  ChunkDeviceCall work("linear", p, in, Tensor());
  work.forward(result);
  if (p.heads() == 0) return;
  if (p.N > 0) FOVEA_GPU_CALL(work.device(), linear_prepare, work.call(), stream_of(work.device()));
  FOVEA_GPU_CALL(work.device(), linear_walk, work.call(), stream_of(work.device()));
}

void linear_backward_device(const LinearProblem& p, const LinearInputs& in, const Tensor& dout,
                            const Tensor& dstate, const LinearGrads& grads) {
  ChunkDeviceCall work("linear", p, in, Tensor());
  work.backward(dout, dstate, grads, Tensor());
  if (p.heads() == 0) return;
  const Device device = work.device();
  if (p.N > 0) FOVEA_GPU_CALL(device, linear_prepare, work.call(), stream_of(device));
  FOVEA_GPU_CALL(device, linear_walk, work.call(), stream_of(device));
  FOVEA_GPU_CALL(device, linear_walk_back, work.call(), stream_of(device));
  if (p.N > 0) FOVEA_GPU_CALL(device, linear_gradients, work.call(), stream_of(device));
}

}  // namespace fovea::attention
