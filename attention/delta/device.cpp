// SPDX-License-Identifier: Apache-2.0
// The delta engine on GPU devices: working memory, then its kernels in order.
#include "attention/delta/passes.h"
#include "attention/linear/device_call.h"

namespace fovea::attention {

void delta_forward_device(const LinearProblem& p, const DeltaInputs& in,
                          const LinearResult& result) {
  ChunkDeviceCall work("delta", p, in, in.beta);
  work.forward(result);
  if (p.heads() == 0) return;
  if (p.N > 0) FOVEA_GPU_CALL(work.device(), delta_prepare, work.call(), stream_of(work.device()));
  FOVEA_GPU_CALL(work.device(), delta_walk, work.call(), stream_of(work.device()));
}

void delta_backward_device(const LinearProblem& p, const DeltaInputs& in, const Tensor& dout,
                           const Tensor& dstate, const DeltaGrads& grads) {
  ChunkDeviceCall work("delta", p, in, in.beta);
  work.backward(dout, dstate, grads, grads.dbeta);
  if (p.heads() == 0) return;
  const Device device = work.device();
  if (p.N > 0) FOVEA_GPU_CALL(device, delta_prepare, work.call(), stream_of(device));
  FOVEA_GPU_CALL(device, delta_walk, work.call(), stream_of(device));
  FOVEA_GPU_CALL(device, delta_walk_back, work.call(), stream_of(device));
  if (p.N > 0) FOVEA_GPU_CALL(device, delta_gradients, work.call(), stream_of(device));
}

}  // namespace fovea::attention
