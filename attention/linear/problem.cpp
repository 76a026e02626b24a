// SPDX-License-Identifier: Apache-2.0
#include "attention/linear/problem.h"

#include "core/ops/reduce.h"

namespace fovea::attention {
namespace {

Tensor unit_last_stride(const Tensor& x) {
  return x.dim(3) <= 1 || x.stride(3) == 1 ? x : x.contiguous();
}

void check_like(const char* op, const char* name, const Tensor& t, const Shape& shape, Dtype dtype,
                Device device) {
  if (!t.defined()) return;
  FOVEA_CHECK(t.shape() == shape && t.dtype() == dtype, op, ": ", name, " is ", t.dtype(), ' ',
              t.shape(), "; expected ", dtype, ' ', shape);
  FOVEA_CHECK(t.device() == device, op, ": q is on ", device, " but ", name, " on ", t.device());
}

}  // namespace

LinearProblem check_linear(const char* op, const LinearInputs& in) {
  const Tensor &q = in.q, &k = in.k, &v = in.v, &g = in.g;
  FOVEA_CHECK(q.rank() == 4 && k.rank() == 4 && v.rank() == 4, op,
              ": expected q, k, v [B, H, N, D], found ", q.shape(), ", ", k.shape(), ", ",
              v.shape());
  LinearProblem p{q.dim(0), q.dim(1), q.dim(2), q.dim(3), v.dim(3), 1};
  FOVEA_CHECK(k.shape() == q.shape(), op, ": k is ", k.shape(), " but q is ", q.shape());
  FOVEA_CHECK(v.dim(0) == p.B && v.dim(1) == p.H && v.dim(2) == p.N, op, ": v is ", v.shape(),
              "; expected [", p.B, ", ", p.H, ", ", p.N, ", Dv]");
  FOVEA_CHECK(p.Dk >= 1 && p.Dv >= 1, op, ": head dims are ", p.Dk, " and ", p.Dv,
              "; expected at least 1");
  FOVEA_CHECK(q.dtype() == k.dtype() && q.dtype() == v.dtype(), op, ": q, k, v are ", q.dtype(),
              ", ", k.dtype(), ", ", v.dtype(), "; expected one dtype");
  FOVEA_CHECK(q.dtype() == Dtype::f32 || q.dtype() == Dtype::bf16 || q.dtype() == Dtype::f64, op,
              ": q is ", q.dtype(), "; expected f32, bf16 or f64");
  check_like(op, "k", k, q.shape(), q.dtype(), q.device());
  check_like(op, "v", v, v.shape(), q.dtype(), q.device());
  const Dtype state = state_dtype(q);
  if (g.defined()) {
    const Shape token{p.B, p.H, p.N}, channel{p.B, p.H, p.N, p.Dk};
    FOVEA_CHECK(g.shape() == Shape{p.H} || g.shape() == token || g.shape() == channel, op,
                ": g is ", g.shape(), "; expected ", Shape{p.H}, ", ", token, " or ", channel);
    check_like(op, "g", g, g.shape(), state, q.device());
    if (g.rank() == 4) p.G = p.Dk;
  }
  check_like(op, "starts", in.starts, {p.B, p.N}, Dtype::u8, q.device());
  check_like(op, "state", in.state, {p.B, p.H, p.Dk, p.Dv}, state, q.device());
  return p;
}

LinearInputs prepared_linear(const LinearProblem& p, const LinearInputs& in) {
  LinearInputs out = in;
  out.q = unit_last_stride(in.q);
  out.k = unit_last_stride(in.k);
  out.v = unit_last_stride(in.v);
  if (in.g.defined()) {
    out.g = in.g.rank() == 1   ? in.g.view({1, p.H, 1, 1}).expand({p.B, p.H, p.N, 1})
            : in.g.rank() == 3 ? in.g.unsqueeze(3)
                               : unit_last_stride(in.g);
  }
  if (in.starts.defined()) out.starts = in.starts.contiguous();
  if (in.state.defined()) out.state = in.state.contiguous();
  return out;
}

LinearGrads make_grads(const LinearProblem& p, const LinearInputs& in) {
  const Dtype dtype = in.q.dtype(), state = state_dtype(in.q);
  const Device device = in.q.device();
  LinearGrads grads;
  grads.dq = token_major(p, p.Dk, dtype, device);
  grads.dk = token_major(p, p.Dk, dtype, device);
  grads.dv = token_major(p, p.Dv, dtype, device);
  if (in.g.defined()) grads.dg = Tensor::empty({p.B, p.H, p.N, p.G}, state, device);
  grads.dstate = Tensor::empty({p.B, p.H, p.Dk, p.Dv}, state, device);
  return grads;
}

Tensor gate_gradient_of(const Tensor& dg, const Tensor& g) {
  if (!g.defined() || g.rank() == 4) return dg;
  if (g.rank() == 3) return dg.squeeze(3);
  return sum(sum(dg.squeeze(3), 2), 0);
}

Tensor check_dout(const char* op, const LinearProblem& p, const LinearInputs& in,
                  const Tensor& dout, const Tensor& dstate) {
  const Shape shape{p.B, p.H, p.N, p.Dv};
  check_like(op, "dout", dout, shape, in.q.dtype(), in.q.device());
  check_like(op, "dstate", dstate, {p.B, p.H, p.Dk, p.Dv}, state_dtype(in.q), in.q.device());
  return dout.defined() ? unit_last_stride(dout)
                        : Tensor::zeros(shape, in.q.dtype(), in.q.device());
}

Tensor document_starts(const Tensor& ids) {
  FOVEA_CHECK(ids.rank() == 2 && (ids.dtype() == Dtype::i32 || ids.dtype() == Dtype::i64),
              "document_starts: expected i32 or i64 ids [B, N], found ", ids.dtype(), ' ',
              ids.shape());
  const int64_t B = ids.dim(0), N = ids.dim(1);
  const std::vector<int64_t> id = ids.to_vector<int64_t>();
  std::vector<uint8_t> starts(id.size());
  for (int64_t i = 0; i < B * N; ++i) {
    const auto at = static_cast<size_t>(i);
    starts[at] = i % N == 0 || id[at] != id[at - 1] ? 1 : 0;
  }
  return Tensor::from(starts, {B, N}, ids.device());
}

}  // namespace fovea::attention
