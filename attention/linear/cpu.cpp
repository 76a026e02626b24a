// SPDX-License-Identifier: Apache-2.0
// Three passes, the first and the last parallel over all chunks of all heads: what each chunk adds
// to the state; the scan over chunks, parallel over the state's rows; what each chunk gives out.
// Bytes beside inputs and outputs: a state a chunk, written, scanned and read (twice for backward).
#include "attention/linear/chunk.h"
#include "attention/linear/passes.h"

namespace fovea::attention {
namespace {

template <typename T>
const T* data_or_null(const Tensor& t) {
  return t.defined() ? t.data<T>() : nullptr;
}

// What each chunk adds to the state, and its decay, scanned; last as in scan_states.
template <typename T>
void state_pass(const LinearProblem& p, const LinearInputs& in, T* states, T* decays, T* last) {
  parallel_for_each(0, p.heads() * p.chunks(), [&](int64_t index) {
    const Chunk<T> chunk(p, in, index);
    const Scratch<T> k(kChunk * p.Dk), v(kChunk * p.Dv);
    chunk.load(k.data(), in.k);
    chunk.load(v.data(), in.v);
    chunk.scale(k.data(), k.data(), chunk.to_state());
    multiply_left_transposed(states + index * p.Dk * p.Dv, p.Dv, k.data(), p.Dk, v.data(), p.Dv,
                             p.Dk, p.Dv, chunk.rows(), false);
    std::copy_n(chunk.decay(), p.G, decays + index * p.G);
  });
  scan_states(p, states, decays, data_or_null<T>(in.state), last, false);
}

template <typename T>
void forward(const LinearProblem& p, const LinearInputs& in, const LinearResult& result) {
  const int64_t all = p.heads() * p.chunks(), size = p.Dk * p.Dv;
  const Scratch<T> states(all * size), decays(all * p.G);
  state_pass(p, in, states.data(), decays.data(), result.state.data<T>());
  parallel_for_each(0, all, [&](int64_t index) {
    const Chunk<T> chunk(p, in, index);
    const int64_t rows = chunk.rows();
    const Scratch<T> q(kChunk * p.Dk), k(kChunk * p.Dk), v(kChunk * p.Dv), out(kChunk * p.Dv),
        s(kChunk * kChunk);
    chunk.load(q.data(), in.q);
    chunk.load(k.data(), in.k);
    chunk.load(v.data(), in.v);
    chunk.scores(s.data(), q.data(), k.data(), false);
    chunk.scale(q.data(), q.data(), chunk.from_state());
    multiply(out.data(), p.Dv, q.data(), p.Dk, states.data() + index * size, p.Dv, rows, p.Dv, p.Dk,
             false);
    multiply(out.data(), p.Dv, s.data(), kChunk, v.data(), p.Dv, rows, p.Dv, rows, true);
    chunk.store(result.out, out.data());
  });
}

template <typename T>
void backward(const LinearProblem& p, const LinearInputs& in, const Tensor& dout,
              const Tensor& dstate, const LinearGrads& grads) {
  const int64_t all = p.heads() * p.chunks(), size = p.Dk * p.Dv;
  const Scratch<T> states(all * size), dstates(all * size), decays(all * p.G),
      last(p.heads() * size);
  state_pass(p, in, states.data(), decays.data(), last.data());
  parallel_for_each(0, all, [&](int64_t index) {
    const Chunk<T> chunk(p, in, index);
    const Scratch<T> q(kChunk * p.Dk), out(kChunk * p.Dv);
    chunk.load(q.data(), in.q);
    chunk.load(out.data(), dout);
    chunk.scale(q.data(), q.data(), chunk.from_state());
    multiply_left_transposed(dstates.data() + index * size, p.Dv, q.data(), p.Dk, out.data(), p.Dv,
                             p.Dk, p.Dv, chunk.rows(), false);
  });
  scan_states(p, dstates.data(), decays.data(), data_or_null<T>(dstate), grads.dstate.data<T>(),
              true);
  parallel_for_each(0, all, [&](int64_t index) {
    const Chunk<T> chunk(p, in, index);
    const int64_t rows = chunk.rows(), Dk = p.Dk, Dv = p.Dv;
    const T *state = states.data() + index * size, *ds = dstates.data() + index * size;
    const Scratch<T> q(kChunk * Dk), k(kChunk * Dk), v(kChunk * Dv), out(kChunk * Dv),
        s(kChunk * kChunk), dq(kChunk * Dk), dk(kChunk * Dk), dv(kChunk * Dv), work(kChunk * Dk);
    chunk.load(q.data(), in.q);
    chunk.load(k.data(), in.k);
    chunk.load(v.data(), in.v);
    chunk.load(out.data(), dout);
    // dv = (k to_state) dS + s^T dout
    chunk.scores(s.data(), q.data(), k.data(), false);
    chunk.scale(work.data(), k.data(), chunk.to_state());
    multiply(dv.data(), Dv, work.data(), Dk, ds, Dv, rows, Dv, Dk, false);
    multiply_left_transposed(dv.data(), Dv, s.data(), kChunk, out.data(), Dv, rows, Dv, rows, true);
    // dq, dk through the states, then through the scores
    multiply_right_transposed(work.data(), Dk, out.data(), Dv, state, rows, Dk, Dv, false);
    chunk.scale(dq.data(), work.data(), chunk.from_state());
    multiply_right_transposed(work.data(), Dk, v.data(), Dv, ds, rows, Dk, Dv, false);
    chunk.scale(dk.data(), work.data(), chunk.to_state());
    multiply_right_transposed(s.data(), kChunk, out.data(), Dv, v.data(), rows, rows, Dv, false);
    chunk.scores_backward(dq.data(), dk.data(), s.data(), q.data(), k.data(), false);
    chunk.store(grads.dq, dq.data());
    chunk.store(grads.dk, dk.data());
    chunk.store(grads.dv, dv.data());
    if (!grads.dg.defined()) return;
    for (int64_t e = 0; e < rows * Dk; ++e) work[e] = q[e] * dq[e] - k[e] * dk[e];
    const bool is_last = index % p.chunks() == p.chunks() - 1;
    chunk.store_gate_gradient(grads.dg, work.data(),
                              is_last ? last.data() + chunk.head() * size : state + size, ds);
  });
}

}  // namespace

void linear_forward_cpu(const LinearProblem& p, const LinearInputs& in,
                        const LinearResult& result) {
  in.q.dtype() == Dtype::f64 ? forward<double>(p, in, result) : forward<float>(p, in, result);
}

void linear_backward_cpu(const LinearProblem& p, const LinearInputs& in, const Tensor& dout,
                         const Tensor& dstate, const LinearGrads& grads) {
  in.q.dtype() == Dtype::f64 ? backward<double>(p, in, dout, dstate, grads)
                             : backward<float>(p, in, dout, dstate, grads);
}

}  // namespace fovea::attention
