// SPDX-License-Identifier: Apache-2.0
#include "attention/linear/device_call.h"

namespace fovea::attention {
namespace {

TokenRows rows_of(const Tensor& t) {
  if (!t.defined()) return {};
  return {t.raw(), t.stride(0), t.stride(1), t.stride(2)};
}

}  // namespace

ChunkDeviceCall::ChunkDeviceCall(const char* op, const LinearProblem& p, const LinearInputs& in,
                                 const Tensor& beta)
    : p_(p), in_(in), beta_(beta), device_(in.q.device()) {
  FOVEA_CHECK(p.Dk <= kLargestKeyDim, op, ": q has ", p.Dk, " channels; device ", device_,
              " takes at most ", kLargestKeyDim);
  for (const int64_t n : {p.heads() * p.chunks() * kChunk, p.heads() * ((p.Dv + 63) / 64), p.N})
    FOVEA_CHECK(n < (int64_t{1} << 31), op, ": q is ", in.q.shape(), "; device ", device_,
                " takes fewer than 2^31 tokens");
  c_.B = static_cast<int>(p.B);
  c_.H = static_cast<int>(p.H);
  c_.N = static_cast<int>(p.N);
  c_.Dk = static_cast<int>(p.Dk);
  c_.Dv = static_cast<int>(p.Dv);
  c_.G = static_cast<int>(p.G);
  c_.chunks = static_cast<int>(p.chunks());
  c_.dtype = in.q.dtype();
  c_.q = rows_of(in_.q);
  c_.k = rows_of(in_.k);
  c_.v = rows_of(in_.v);
  c_.g = rows_of(in_.g);
  c_.beta = rows_of(beta_);
  c_.starts = in_.starts.defined() ? in_.starts.data<uint8_t>() : nullptr;
  c_.state = given(in_.state);
  const int64_t all = p.heads() * p.chunks(), rows = all * kChunk;
  c_.sums = work(rows * p.G);
  c_.from_state = work(rows * p.G);
  c_.to_state = work(rows * p.G);
  c_.decay = work(all * p.G);
  c_.scores = work(rows * kChunk);
  if (beta_.defined()) c_.inverse = work(rows * kChunk);
}

float* ChunkDeviceCall::work(int64_t numbers) {
  memory_.push_back(Tensor::empty({numbers}, Dtype::f32, device_));
  return memory_.back().data<float>();
}

void ChunkDeviceCall::forward(const LinearResult& result) {
  c_.out = rows_of(result.out);
  c_.last = given(result.state);
}

void ChunkDeviceCall::backward(const Tensor& dout, const Tensor& dstate, const LinearGrads& grads,
                               const Tensor& dbeta) {
  const int64_t all = p_.heads() * p_.chunks(), size = p_.Dk * p_.Dv;
  last_ = Tensor::empty({p_.heads(), size}, Dtype::f32, device_);
  c_.last = given(last_);
  c_.dout = rows_of(dout);
  c_.dq = rows_of(grads.dq);
  c_.dk = rows_of(grads.dk);
  c_.dv = rows_of(grads.dv);
  c_.dlast = given(dstate);
  c_.dfirst = given(grads.dstate);
  c_.dg = given(grads.dg);
  c_.dbeta = given(dbeta);
  c_.states = work(all * size);
  c_.dstates = work(all * size);
  if (!beta_.defined()) return;
  c_.adjoint_inverse = work(all * kChunk * kChunk);
  c_.errors = work(all * kChunk * p_.Dv);
  c_.adjoints = work(all * kChunk * p_.Dv);
}

}  // namespace fovea::attention
