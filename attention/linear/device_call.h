// SPDX-License-Identifier: Apache-2.0
#pragma once
// From the tensors of one call of the linear or the delta engine to its kernels' argument; owns the
// working memory. Internal to the two.

#include "attention/linear/cuda/kernels.h"
#include "attention/linear/problem.h"

namespace fovea::attention {

class ChunkDeviceCall {
 public:
  // Inputs are prepared; beta [B, H, N, 1] for the delta rule, else absent.
  ChunkDeviceCall(const char* op, const LinearProblem& p, const LinearInputs& in,
                  const Tensor& beta);
  void forward(const LinearResult& result);
  void backward(const Tensor& dout, const Tensor& dstate, const LinearGrads& grads,
                const Tensor& dbeta);

  const ChunkCall& call() const { return c_; }
  Device device() const { return device_; }

 private:
  float* work(int64_t numbers);
  float* given(const Tensor& t) const { return t.defined() ? t.data<float>() : nullptr; }

  const LinearProblem p_;
  const LinearInputs in_;
  const Tensor beta_;
  const Device device_;
  ChunkCall c_{};
  Tensor last_;
  std::vector<Tensor> memory_;
};

}  // namespace fovea::attention
