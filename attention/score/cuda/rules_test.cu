// SPDX-License-Identifier: Apache-2.0
#include "attention/score/cuda/fma_backward.cuh"
#include "attention/score/cuda/mma_backward.cuh"
#include "attention/score/cuda/mma_forward.cuh"
#include "attention/score/cuda/rules_test.h"

namespace FOVEA_GPU {
namespace {

// Of head dims up to 32 in bf16, 64 in f32; and wide ones in f32.
template <class Rule>
void forward(const attention::ScoreCall& call, Stream stream) {
  if (is_wide(call)) return wide_forward<Rule, float>(call, stream);
  if (call.q.dtype == Dtype::f32) {
    fma_forward_of<Rule, 64>(call, stream);
    forward_end<Rule, float>(call, stream);
  } else {
    mma_forward_of<Rule, 32, 1>(call, stream);
    forward_end<Rule, bf16>(call, stream);
  }
}
template <class Rule>
void backward(const attention::ScoreCall& call, Stream stream) {
  if (is_wide(call)) return wide_backward<Rule, float>(call, stream);
  if (call.q.dtype == Dtype::f32) {
    fma_backward_of<Rule, 64, true>(call, stream);
    fma_backward_of<Rule, 64, false>(call, stream);
  } else {
    mma_backward_of<Rule, 32>(call, stream);
  }
}

}  // namespace

void sigmoid_forward(const attention::ScoreCall& call, Stream stream) {
  forward<SigmoidNumbers>(call, stream);
}
void sigmoid_backward(const attention::ScoreCall& call, Stream stream) {
  backward<SigmoidNumbers>(call, stream);
}
void squared_relu_forward(const attention::ScoreCall& call, Stream stream) {
  forward<SquaredReluNumbers>(call, stream);
}
void squared_relu_backward(const attention::ScoreCall& call, Stream stream) {
  backward<SquaredReluNumbers>(call, stream);
}

}  // namespace FOVEA_GPU
