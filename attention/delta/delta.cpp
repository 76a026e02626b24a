// SPDX-License-Identifier: Apache-2.0
#include "attention/delta/delta.h"

#include "attention/delta/passes.h"

namespace fovea::attention {
namespace {

class DeltaFn final : public Function {
 public:
  explicit DeltaFn(Tensor starts) : starts_(std::move(starts)) {}
  const char* name() const override { return "delta"; }
  Tensors forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                  const Tensor& g, const Tensor& state) {
    save(q, k, v, beta, g, state);
    LinearResult result = delta_forward({{q, k, v, g, starts_, state}, beta});
    return {result.out, result.state};
  }
  Tensors backward(const Tensors& dout) override {
    const auto& [q, k, v, beta, g, state] = saved<6>();
    DeltaGrads grads = delta_backward({{q, k, v, g, starts_, state}, beta}, dout[0], dout[1]);
    return {grads.dq,    grads.dk, grads.dv,
            grads.dbeta, grads.dg, state.defined() ? grads.dstate : Tensor()};
  }

 private:
  Tensor starts_;
};

LinearProblem check_delta(const DeltaInputs& in) {
  const LinearProblem p = check_linear("delta", in);
  const Shape shape{p.B, p.H, p.N};
  const Dtype dtype = state_dtype(in.q);
  FOVEA_CHECK(in.beta.defined() && in.beta.shape() == shape && in.beta.dtype() == dtype,
              "delta: beta is ", in.beta.dtype(), ' ', in.beta.shape(), "; expected ", dtype, ' ',
              shape);
  FOVEA_CHECK(in.beta.device() == in.q.device(), "delta: q is on ", in.q.device(), " but beta on ",
              in.beta.device());
  return p;
}

DeltaInputs prepared_delta(const LinearProblem& p, const DeltaInputs& in) {
  return {prepared_linear(p, in), in.beta.unsqueeze(3)};
}

}  // namespace

LinearResult delta_forward(const DeltaInputs& in) {
  const LinearProblem p = check_delta(in);
  const LinearResult result{
      token_major(p, p.Dv, in.q.dtype(), in.q.device()),
      Tensor::empty({p.B, p.H, p.Dk, p.Dv}, state_dtype(in.q), in.q.device())};
  const DeltaInputs prepared = prepared_delta(p, in);
  in.q.device().is_cpu() ? delta_forward_cpu(p, prepared, result)
                         : delta_forward_device(p, prepared, result);
  return result;
}

DeltaGrads delta_backward(const DeltaInputs& in, const Tensor& dout, const Tensor& dstate) {
  const LinearProblem p = check_delta(in);
  const Tensor given = check_dout("delta", p, in, dout, dstate);
  DeltaGrads grads{make_grads(p, in),
                   Tensor::empty({p.B, p.H, p.N, 1}, state_dtype(in.q), in.q.device())};
  const DeltaInputs prepared = prepared_delta(p, in);
  const Tensor last = dstate.defined() ? dstate.contiguous() : dstate;
  in.q.device().is_cpu() ? delta_backward_cpu(p, prepared, given, last, grads)
                         : delta_backward_device(p, prepared, given, last, grads);
  grads.dg = gate_gradient_of(grads.dg, in.g);
  grads.dbeta = grads.dbeta.squeeze(3);
  return grads;
}

Tensor delta_transition(const DeltaInputs& in) {
  const LinearProblem p = check_delta(in);
  std::vector<float> identity(static_cast<size_t>(p.Dk * p.Dk));
  for (int64_t c = 0; c < p.Dk; ++c) identity[static_cast<size_t>(c * p.Dk + c)] = 1.0f;
  DeltaInputs unit = in;  // what comes of each unit vector, without values
  unit.v = Tensor::zeros({p.B, p.H, p.N, p.Dk}, in.v.dtype(), in.v.device());
  unit.state = Tensor::from(identity, {p.Dk, p.Dk}, in.q.device())
                   .to(state_dtype(in.q))
                   .expand({p.B, p.H, p.Dk, p.Dk});
  return delta_forward(unit).state;
}

Tensor delta_step(const DeltaInputs& in) {
  FOVEA_CHECK(in.q.rank() == 4 && in.q.dim(2) == 1 && in.state.defined(),
              "delta: a step takes q [B, H, 1, Dk] and a state, found q ", in.q.shape());
  const LinearResult result = delta_forward(in);
  in.state.copy_(result.state);
  return result.out;
}

Variables delta_rule(const Variable& q, const Variable& k, const Variable& v, const Variable& beta,
                     const Variable& g, const Variable& state, const Tensor& starts) {
  return record(make<DeltaFn>(starts), q, k, v, beta, g, state);
}

}  // namespace fovea::attention
