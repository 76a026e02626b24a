// SPDX-License-Identifier: Apache-2.0
#include "distributed/state.h"

#include <functional>

#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"

namespace fovea::distributed {
namespace {

using attention::DeltaGrads;
using attention::DeltaInputs;
using attention::LinearGrads;
using attention::LinearInputs;
using attention::LinearResult;

// ---- transitions --------------------------------------------------------------------------------

// What all stretches have in common.
struct Form {
  Shape S;  // [B, H, Dk, Dv]
  Shape M;  // diagonal [B, H, 1 or Dk, 1], matrix [B, H, Dk, Dk], or [] where every M is 1
  Dtype dtype;
  Device device;

  int64_t M_numel() const { return M.rank() == 0 ? 0 : M.numel(); }
  Tensor empty(const Shape& shape) const { return Tensor::empty(shape, dtype, device); }
  Tensor zeros(const Shape& shape) const { return Tensor::zeros(shape, dtype, device); }
};

// What a stretch of tokens does to a state.
struct Stretch {
  Tensor S, M;  // M is absent for 1
};

// M x + S; with `back` M^T x + S.
Tensor passed(const Stretch& stretch, const Tensor& x, bool back) {
  const auto& [S, M] = stretch;
  if (!M.defined()) return add(x, S);
  if (M.dim(3) == 1) return add(mul(M, x), S);
  return add(matmul(back ? M.transpose(2, 3) : M, x), S);
}

// ---- the exchange -------------------------------------------------------------------------------

// The ranks in the order in which a state passes them: forward, or back for its gradient.
class Line {
 public:
  Line(const Communicator& comm, const StateOptions& options, bool back, const Form& form)
      : comm_(comm), options_(options), back_(back), form_(form) {
    if (options.strategy == StateStrategy::chain) options_.pieces = 1;
    options_.pieces = std::min(options_.pieces, form.S[3]);
    if (!first() && !gathers()) post(0);
  }

  bool first() const { return place(comm_.rank()) == 0; }
  bool last() const { return place(comm_.rank()) == comm_.size() - 1; }

  // What enters this rank, which is not the first; `own` is what it does to that, unless it is the
  // last.
  Tensor enter(const Stretch& own) { return gathers() ? fold(gather(own)) : chain(own); }
  // The first rank's part: what leaves it.
  void leave(const Tensor& state) {
    if (last()) return;
    if (gathers()) {
      gather({state, {}});
    } else {
      for (int64_t i = 0; i < options_.pieces; ++i) send(i, piece(state, i));
    }
  }
  // Returns when what was sent has left.
  void finish() {
    for (Work& work : sent_) work.wait();
  }

 private:
  bool gathers() const { return options_.strategy == StateStrategy::gather; }
  int place(int rank) const { return back_ ? comm_.size() - 1 - rank : rank; }
  int rank_at(int place) const { return this->place(place); }

  // ---- gather
  // M and S of all ranks, in rows by rank.
  Tensor gather(const Stretch& own) {
    const int64_t m = form_.M_numel();
    const Tensor mine = form_.zeros({m + form_.S.numel()});
    if (own.M.defined()) mine.slice(0, 0, m).view(form_.M).copy_(own.M);
    if (own.S.defined()) mine.slice(0, m, mine.numel()).view(form_.S).copy_(own.S);
    const Tensor all = form_.empty({comm_.size(), mine.numel()});
    Work work = comm_.all_gather(all, mine, first() ? Mode::async : Mode::blocking);
    if (first()) sent_.push_back(std::move(work));
    return all;
  }
  // S of the first; then past each rank before this one.
  Tensor fold(const Tensor& all) const {
    const int64_t m = form_.M_numel();
    Tensor x;
    for (int at = 0; at < place(comm_.rank()); ++at) {
      const Tensor row = all.select(0, rank_at(at));
      const Tensor S = row.slice(0, m, row.dim(0)).view(form_.S);
      x = at == 0 ? S : passed({S, m == 0 ? Tensor() : row.slice(0, 0, m).view(form_.M)}, x, back_);
    }
    return x;
  }

  // ---- chain, in pieces along Dv
  Tensor piece(const Tensor& x, int64_t i) const {
    const int64_t Dv = form_.S[3], K = options_.pieces;
    return x.slice(3, Dv * i / K, Dv * (i + 1) / K);
  }
  // One receive ahead, and in the order of the sends: back ends that match by order need that.
  void post(int64_t i) {
    Shape shape = form_.S;
    shape[3] = shape[3] * (i + 1) / options_.pieces - shape[3] * i / options_.pieces;
    arrived_ = form_.empty(shape);
    receive_ =
        comm_.recv(arrived_, rank_at(place(comm_.rank()) - 1), static_cast<int>(i), Mode::async);
  }
  void send(int64_t i, const Tensor& x) {
    sent_.push_back(
        comm_.send(x, rank_at(place(comm_.rank()) + 1), static_cast<int>(i), Mode::async));
  }
  Tensor chain(const Stretch& own) {
    const Tensor entering = form_.empty(form_.S);
    for (int64_t i = 0; i < options_.pieces; ++i) {
      receive_.wait();
      const Tensor x = arrived_;
      if (!last()) send(i, passed({piece(own.S, i), own.M}, x, back_));
      if (i + 1 < options_.pieces) post(i + 1);
      piece(entering, i).copy_(x);
    }
    return entering;
  }

  const Communicator comm_;
  StateOptions options_;
  const bool back_;
  const Form form_;
  Tensor arrived_;
  Work receive_;
  std::vector<Work> sent_;
};

// ---- the engines --------------------------------------------------------------------------------

LinearResult run(const LinearInputs& in) { return linear_forward(in); }
LinearResult run(const DeltaInputs& in) { return delta_forward(in); }
LinearGrads run_back(const LinearInputs& in, const Tensor& dout, const Tensor& dstate) {
  return linear_backward(in, dout, dstate);
}
DeltaGrads run_back(const DeltaInputs& in, const Tensor& dout, const Tensor& dstate) {
  return delta_backward(in, dout, dstate);
}

template <typename Inputs>
constexpr bool kIsDelta = std::is_same_v<Inputs, DeltaInputs>;

// [Dk, Dk]
Tensor unit_matrix(int64_t Dk, const Form& form) {
  std::vector<float> values(static_cast<size_t>(Dk * Dk));
  for (int64_t c = 0; c < Dk; ++c) values[static_cast<size_t>(c * Dk + c)] = 1.0f;
  return Tensor::from(values, {Dk, Dk}).to(form.dtype).to(form.device);
}

// The pass from state zero. A diagonal transition is what it makes of ones, in eight columns to
// keep rows aligned.
template <typename Inputs>
Stretch pass_from_zero(const Inputs& in, const Form& form) {
  const int64_t B = form.S[0], H = form.S[1], Dk = form.S[2], Dv = form.S[3], N = in.q.dim(2);
  Inputs wide = in;
  wide.state = Tensor();
  if (form.M.rank() == 0) return {run(wide).state, {}};
  const int64_t columns = kIsDelta<Inputs> ? Dk : 8;
  wide.v = Tensor::zeros({B, H, N, Dv + columns}, in.v.dtype(), in.v.device());
  wide.v.slice(3, 0, Dv).copy_(in.v);
  wide.state = form.zeros({B, H, Dk, Dv + columns});
  const Tensor unit = wide.state.slice(3, Dv, Dv + columns);
  if constexpr (kIsDelta<Inputs>) {
    unit.copy_(unit_matrix(Dk, form));
  } else {
    unit.fill_(1.0);
  }
  const Tensor both = run(wide).state;
  return {both.slice(3, 0, Dv), both.slice(2, 0, form.M[2]).slice(3, Dv, Dv + form.M[3])};
}

// q~ [B, H, N, Dk]
template <typename Inputs>
Tensor reads_of_first_state(const Inputs& in, const Form& form) {
  if (form.M.rank() == 0) return in.q;
  const int64_t Dk = form.S[2];
  Inputs unit = in;
  unit.v = Tensor::zeros(in.q.shape(), in.q.dtype(), in.q.device());
  unit.state = unit_matrix(Dk, form).expand({form.S[0], form.S[1], Dk, Dk});
  return run(unit).out;
}

template <typename Inputs>
class StateFn final : public Function {
 public:
  StateFn(Tensor starts, const Communicator& comm, const StateOptions& options)
      : starts_(std::move(starts)), comm_(comm), options_(options) {
    FOVEA_CHECK(options.pieces >= 1, name(), ": expected at least 1 piece, found ", options.pieces);
  }
  const char* name() const override { return kIsDelta<Inputs> ? "delta" : "linear"; }

  // x: q, k, v, g, state, beta of the delta rule
  Tensors forward(const Tensors& x) {
    FOVEA_CHECK(comm_.rank() == 0 || !x[4].defined(), name(), ": rank ", comm_.rank(),
                " gives a state; the state before the sequence is rank 0's to give");
    Inputs in = inputs(x);
    const Form form = form_of(in);
    Line line(comm_, options_, false, form);
    Stretch own;
    LinearResult result;
    if (line.first()) {
      result = run(in);
      line.leave(result.state);
    } else {
      if (!line.last()) own = pass_from_zero(in, form);
      in.state = line.enter(own);
      result = run(in);
    }
    line.finish();
    save(x[0], x[1], x[2], x[3], in.state, kIsDelta<Inputs> ? x[5] : Tensor(),
         own.M.defined() ? own.M.clone() : Tensor());
    return {result.out, result.state};
  }

  Tensors backward(const Tensors& dout) override {
    const auto x = saved<7>();
    const Inputs in = inputs({x.begin(), x.end() - 1});
    const Form form = form_of(in);
    const Tensor& dlast = dout[1];
    Line line(comm_, options_, true, form);
    decltype(run_back(in, dout[0], dlast)) grads;
    if (line.first()) {
      grads = run_back(in, dout[0], dlast);
      line.leave(grads.dstate);
    } else {
      const Stretch own = line.last() ? Stretch() : own_gradient(in, form, x[6], dout);
      const Tensor G = line.enter(own);
      grads = run_back(in, dout[0], dlast.defined() ? add(G, dlast) : G);
    }
    line.finish();
    Tensors result{grads.dq, grads.dk, grads.dv, grads.dg, wanted(4) ? grads.dstate : Tensor()};
    if constexpr (kIsDelta<Inputs>) result.push_back(grads.dbeta);
    return result;
  }

 private:
  Inputs inputs(const Tensors& x) const {
    const LinearInputs in{x[0], x[1], x[2], x[3], starts_, x[4]};
    if constexpr (kIsDelta<Inputs>) {
      return {in, x[5]};
    } else {
      return in;
    }
  }
  Form form_of(const Inputs& in) const {
    FOVEA_CHECK(in.q.rank() == 4 && in.v.rank() == 4, name(), ": expected q, k, v [B, H, N, D], ",
                "found ", in.q.shape(), ", ", in.k.shape(), ", ", in.v.shape());
    const int64_t B = in.q.dim(0), H = in.q.dim(1), Dk = in.q.dim(3);
    Shape M;
    if (kIsDelta<Inputs>) {
      M = {B, H, Dk, Dk};
    } else if (in.g.defined() || in.starts.defined()) {
      M = {B, H, in.g.defined() && in.g.rank() == 4 ? Dk : 1, 1};
    }
    return {{B, H, Dk, in.v.dim(3)},
            M,
            in.q.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32,
            in.q.device()};
  }
  // D_r of both gradients: sum_t q~_t^T do_t, and what M makes of the last state's.
  Stretch own_gradient(const Inputs& in, const Form& form, const Tensor& M,
                       const Tensors& dout) const {
    const Tensor D = dout[0].defined() ? matmul(reads_of_first_state(in, form).transpose(2, 3),
                                                dout[0], {.dtype = form.dtype})
                                       : form.zeros(form.S);
    return {dout[1].defined() ? passed({D, M}, dout[1], true) : D, M};
  }

  const Tensor starts_;
  const Communicator comm_;
  const StateOptions options_;
};

}  // namespace

Variables linear_attention(const Variable& q, const Variable& k, const Variable& v,
                           const Variable& g, const Variable& state, const Tensor& starts,
                           const Communicator& context, const StateOptions& options) {
  return record_list(make<StateFn<LinearInputs>>(starts, context, options), {q, k, v, g, state});
}

Variables delta_rule(const Variable& q, const Variable& k, const Variable& v, const Variable& beta,
                     const Variable& g, const Variable& state, const Tensor& starts,
                     const Communicator& context, const StateOptions& options) {
  return record_list(make<StateFn<DeltaInputs>>(starts, context, options),
                     {q, k, v, g, state, beta});
}

}  // namespace fovea::distributed
