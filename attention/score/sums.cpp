// SPDX-License-Identifier: Apache-2.0
// Keys in several parts. A part is computed by itself, from nothing, and then added: what a NaN or
// an infinity reaches can so be computed again, exactly. Cost: acc is read and written once a part
// more than in one pass, dq, dk and dv likewise.
#include "attention/score/engine.h"
#include "core/ops/elementwise.h"
#include "core/parallel.h"

namespace fovea::attention {
namespace {

Dtype sums_dtype(Dtype dtype) { return dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32; }

// visit(Acc()) for the sums' type.
template <typename Visit>
void dispatch_sums(const ScoreSums& sums, const Visit& visit) {
  sums.acc.dtype() == Dtype::f64 ? visit(double{}) : visit(float{});
}

void check_sums(const Problem& p, const ScoreInputs& in, const ScoreSums& sums) {
  const Dtype dtype = sums_dtype(in.q.dtype());
  const Shape rows{p.B, p.H, p.N};
  for (const Tensor* t : {&sums.acc, &sums.m, &sums.l}) {
    const Shape expected = t == &sums.acc ? Shape{p.B, p.H, p.N, p.Dv} : rows;
    FOVEA_CHECK(t->shape() == expected && t->dtype() == dtype && t->device() == in.q.device() &&
                    t->is_contiguous(),
                "score: sums are ", t->dtype(), ' ', t->shape(), " on ", t->device(),
                "; expected contiguous ", dtype, ' ', expected, " on ", in.q.device());
  }
}

}  // namespace

ScoreSums score_sums(const ScoreInputs& in) {
  const Shape rows{in.q.dim(0), in.q.dim(1), in.q.dim(2)};
  const Dtype dtype = sums_dtype(in.q.dtype());
  const Device device = in.q.device();
  return {Tensor::zeros({rows[0], rows[1], rows[2], in.v.dim(3)}, dtype, device),
          Tensor::full(rows, -INFINITY, dtype, device), Tensor::zeros(rows, dtype, device)};
}

void score_forward_sums(const ScoreRule& rule, const ScoreInputs& given, const Mask& mask,
                        const ScoreOptions& options, const ScoreSums& sums) {
  const Problem p = check_problem(rule, given, mask, options);
  check_sums(p, given, sums);
  const ScoreInputs in = prepared_inputs(given);
  if (!in.q.device().is_cpu()) return device_forward_sums(rule, p, in, mask, options, sums);
  const ScoreSums part = score_sums(in);
  tiles_forward_sums(rule, p, in, mask, options, part);
  dispatch_sums(sums, [&]<typename Acc>(Acc) {
    parallel_for(0, p.B * p.H * p.N, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        add_row(rule, sums.m.data<Acc>()[row], sums.l.data<Acc>()[row],
                sums.acc.data<Acc>() + row * p.Dv, part.m.data<Acc>()[row], part.l.data<Acc>()[row],
                part.acc.data<Acc>() + row * p.Dv, p.Dv);
      }
    });
  });
}

ScoreResult score_finish(const ScoreRule& rule, const ScoreSums& sums, Dtype dtype,
                         ScoreResult into) {
  const Tensor& acc = sums.acc;
  const int64_t B = acc.dim(0), H = acc.dim(1), N = acc.dim(2), Dv = acc.dim(3);
  if (!into.out.defined())
    into.out = Tensor::empty({B, N, H, Dv}, dtype, acc.device()).transpose(1, 2);
  if (!into.lse.defined()) into.lse = Tensor::empty({B, H, N}, acc.dtype(), acc.device());
  FOVEA_CHECK(into.out.shape() == acc.shape() && into.out.dtype() == dtype &&
                  into.lse.shape() == sums.l.shape() && into.lse.is_contiguous(),
              "score: sums are ", acc.shape(), " but out is ", into.out.dtype(), ' ',
              into.out.shape(), " and lse ", into.lse.shape());
  if (!acc.device().is_cpu()) {
    device_finish(rule, sums, into);
    return into;
  }
  const Tensor scaled = Tensor::empty_like(acc);
  dispatch_sums(sums, [&]<typename Acc>(Acc) {
    parallel_for(0, B * H * N, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const RowEnd<Acc> finished =
            finish_row(rule, sums.m.data<Acc>()[row], sums.l.data<Acc>()[row]);
        into.lse.data<Acc>()[row] = finished.statistic;
        for (int64_t d = row * Dv; d < (row + 1) * Dv; ++d)
          scaled.data<Acc>()[d] = finished.factor * acc.data<Acc>()[d];
      }
    });
  });
  into.out.copy_(scaled);
  return into;
}

void score_backward_sums(const ScoreRule& rule, const Tensor& dout, const ScoreResult& result,
                         const ScoreInputs& in, const Mask& mask, const ScoreOptions& options,
                         ScoreGrads& sums) {
  const Dtype dtype = sums_dtype(in.q.dtype());
  ScoreGrads part;
  const auto like = [&](Tensor& to, const Tensor& sum, const Tensor& x, const char* name) {
    FOVEA_CHECK(sum.shape() == x.shape() && sum.dtype() == dtype, "score: ", name, " is ",
                sum.dtype(), ' ', sum.shape(), "; expected ", dtype, ' ', x.shape());
    to = Tensor::empty(x.shape(), dtype, x.device());
  };
  like(part.dq, sums.dq, in.q, "dq");
  like(part.dk, sums.dk, in.k, "dk");
  like(part.dv, sums.dv, in.v, "dv");
  part = score_backward(rule, dout, result, in, mask, options, part);
  axpy_(sums.dq, 1.0, part.dq);
  axpy_(sums.dk, 1.0, part.dk);
  axpy_(sums.dv, 1.0, part.dv);
  if (!in.sink.defined()) return;
  if (sums.dsink.defined()) {
    axpy_(sums.dsink, 1.0, part.dsink);
  } else {
    sums.dsink = part.dsink;
  }
}

}  // namespace fovea::attention
