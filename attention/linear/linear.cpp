// SPDX-License-Identifier: Apache-2.0
#include "attention/linear/linear.h"

#include "attention/linear/passes.h"

namespace fovea::attention {
namespace {

class LinearFn final : public Function {
 public:
  explicit LinearFn(Tensor starts) : starts_(std::move(starts)) {}
  const char* name() const override { return "linear"; }
  Tensors forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                  const Tensor& state) {
    save(q, k, v, g, state);
    LinearResult result = linear_forward({q, k, v, g, starts_, state});
    return {result.out, result.state};
  }
  Tensors backward(const Tensors& dout) override {
    const auto& [q, k, v, g, state] = saved<5>();
    LinearGrads grads = linear_backward({q, k, v, g, starts_, state}, dout[0], dout[1]);
    return {grads.dq, grads.dk, grads.dv, grads.dg, state.defined() ? grads.dstate : Tensor()};
  }

 private:
  Tensor starts_;
};

}  // namespace

LinearResult linear_forward(const LinearInputs& in) {
  const LinearProblem p = check_linear("linear", in);
  const LinearResult result{
      token_major(p, p.Dv, in.q.dtype(), in.q.device()),
      Tensor::empty({p.B, p.H, p.Dk, p.Dv}, state_dtype(in.q), in.q.device())};
  const LinearInputs prepared = prepared_linear(p, in);
  in.q.device().is_cpu() ? linear_forward_cpu(p, prepared, result)
                         : linear_forward_device(p, prepared, result);
  return result;
}

LinearGrads linear_backward(const LinearInputs& in, const Tensor& dout, const Tensor& dstate) {
  const LinearProblem p = check_linear("linear", in);
  const Tensor given = check_dout("linear", p, in, dout, dstate);
  LinearGrads grads = make_grads(p, in);
  const LinearInputs prepared = prepared_linear(p, in);
  const Tensor last = dstate.defined() ? dstate.contiguous() : dstate;
  in.q.device().is_cpu() ? linear_backward_cpu(p, prepared, given, last, grads)
                         : linear_backward_device(p, prepared, given, last, grads);
  grads.dg = gate_gradient_of(grads.dg, in.g);
  return grads;
}

Tensor linear_transition(const LinearInputs& in) {
  const LinearProblem p = check_linear("linear", in);
  const Device device = in.q.device();
  LinearInputs ones = in;  // ones, decayed; no keys
  ones.k = Tensor::zeros(in.k.shape(), in.k.dtype(), device);
  ones.v = Tensor::zeros({p.B, p.H, p.N, 1}, in.v.dtype(), device);
  ones.state = Tensor::full({p.B, p.H, p.Dk, 1}, 1.0, state_dtype(in.q), device);
  return linear_forward(ones).state;
}

Tensor linear_step(const LinearInputs& in) {
  FOVEA_CHECK(in.q.rank() == 4 && in.q.dim(2) == 1 && in.state.defined(),
              "linear: a step takes q [B, H, 1, Dk] and a state, found q ", in.q.shape());
  const LinearResult result = linear_forward(in);
  in.state.copy_(result.state);
  return result.out;
}

Variables linear_attention(const Variable& q, const Variable& k, const Variable& v,
                           const Variable& g, const Variable& state, const Tensor& starts) {
  return record(make<LinearFn>(starts), q, k, v, g, state);
}

}  // namespace fovea::attention
