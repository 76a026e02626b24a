// SPDX-License-Identifier: Apache-2.0
// A and L of all chunks at once; then the walk over chunks, parallel over heads and over blocks of
// 64 columns of the state, which do not mix; backward walks forth and back and then treats all
// chunks at once. Bytes beside inputs and outputs: A and L, 128 numbers a token and head; backward
// also E and Y, 2 Dv a token, and two states a chunk.
#include "attention/delta/passes.h"
#include "attention/linear/chunk.h"

namespace fovea::attention {
namespace {

constexpr int64_t kColumns = 64;              // of the state, a task
constexpr int64_t kScores = kChunk * kChunk;  // numbers of A or L of a chunk

// x [rows, width] <- (I + L diag(beta))^-1 x: sub-chunk by sub-chunk, by products with those
// before.
template <typename T>
void solve(T* x, int64_t width, const T* L, const T* beta, int64_t rows) {
  const Scratch<T> minus(kScores);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < i; ++j) minus[i * kChunk + j] = -L[i * kChunk + j] * beta[j];
  }
  for (int64_t i0 = 0; i0 < rows; i0 += kSubChunk) {
    const int64_t end = std::min(i0 + kSubChunk, rows);
    if (i0 > 0)
      multiply(x + i0 * width, width, minus.data() + i0 * kChunk, kChunk, x, width, end - i0, width,
               i0, true);
    for (int64_t i = i0 + 1; i < end; ++i) {
      for (int64_t j = i0; j < i; ++j) {
        const T factor = minus[i * kChunk + j];
        for (int64_t d = 0; d < width; ++d) x[i * width + d] += factor * x[j * width + d];
      }
    }
  }
}

// x <- (I + diag(beta) L)^-T x, from the last sub-chunk on.
template <typename T>
void solve_transposed(T* x, int64_t width, const T* L, const T* beta, int64_t rows) {
  const Scratch<T> minus(kScores);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < i; ++j) minus[i * kChunk + j] = -L[i * kChunk + j] * beta[i];
  }
  for (int64_t j0 = (rows - 1) / kSubChunk * kSubChunk; j0 >= 0; j0 -= kSubChunk) {
    const int64_t end = std::min(j0 + kSubChunk, rows);
    if (end < rows)
      multiply_left_transposed(x + j0 * width, width, minus.data() + end * kChunk + j0, kChunk,
                               x + end * width, width, end - j0, width, rows - end, true);
    for (int64_t j = end - 2; j >= j0; --j) {
      for (int64_t i = j + 1; i < end; ++i) {
        const T factor = minus[i * kChunk + j];
        for (int64_t d = 0; d < width; ++d) x[j * width + d] += factor * x[i * width + d];
      }
    }
  }
}

template <typename T>
void scale_rows(T* to, const T* x, const T* factors, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < width; ++d) to[i * width + d] = factors[i] * x[i * width + d];
  }
}

template <typename T>
void negate(T* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = -x[i];
}

// state <- decay state + added, [Dk, width]
template <typename T>
void decay_and_add(const LinearProblem& p, T* state, const T* decay, const T* added,
                   int64_t width) {
  for (int64_t c = 0; c < p.Dk; ++c) {
    const T factor = decay[p.G == 1 ? 0 : c];
    for (int64_t e = c * width; e < (c + 1) * width; ++e) state[e] = factor * state[e] + added[e];
  }
}

// Columns of a call's matrices: [rows, Dv] apart, or [rows, width] together.
template <typename T>
void copy_block(T* to, int64_t to_ld, const T* from, int64_t from_ld, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i) std::copy_n(from + i * from_ld, width, to + i * to_ld);
}

template <typename T>
class DeltaPass {
 public:
  DeltaPass(const LinearProblem& p, const DeltaInputs& in)
      : p_(p), in_(in), A_(p.heads() * p.chunks() * kScores), L_(p.heads() * p.chunks() * kScores) {
    parallel_for_each(0, p.heads() * p.chunks(), [&](int64_t index) {
      const Chunk<T> chunk(p, in, index);
      const Scratch<T> q(kChunk * p.Dk), k(kChunk * p.Dk);
      chunk.load(q.data(), in.q);
      chunk.load(k.data(), in.k);
      chunk.scores(A_.data() + index * kScores, q.data(), k.data(), false);
      chunk.scores(L_.data() + index * kScores, k.data(), k.data(), true);
    });
  }

  // Last states to `last` [heads, Dk, Dv]. out [B, H, N, Dv]; or, for backward, absent, with states
  // [heads, chunks, Dk, Dv], what enters each chunk, and errors [heads, chunks, 64, Dv].
  void walk(T* last, const Tensor& out, T* states, T* errors) const {
    for_columns([&](int64_t head, int64_t d0, int64_t width) {
      const int64_t Dk = p_.Dk, Dv = p_.Dv, size = Dk * width;
      const Scratch<T> state(size), added(size), q(kChunk * Dk), k(kChunk * Dk), work(kChunk * Dk),
          e(kChunk * width), v(kChunk * width), o(kChunk * width), beta(kChunk);
      if (in_.state.defined())
        copy_block(state.data(), width, in_.state.template data<T>() + head * Dk * Dv + d0, Dv, Dk,
                   width);
      else
        std::fill_n(state.data(), size, T{0});
      const Tensor values = in_.v.slice(3, d0, d0 + width),
                   outs = out.defined() ? out.slice(3, d0, d0 + width) : out;
      for (int64_t c = 0; c < p_.chunks(); ++c) {
        const int64_t index = head * p_.chunks() + c;
        const Chunk<T> chunk(p_, in_, index);
        const int64_t rows = chunk.rows();
        if (states != nullptr)
          copy_block(states + index * Dk * Dv + d0, Dv, state.data(), width, Dk, width);
        chunk.load(k.data(), in_.k);
        chunk.load(e.data(), values);
        chunk.load(beta.data(), in_.beta);
        chunk.scale(work.data(), k.data(), chunk.from_state());
        negate(work.data(), rows * Dk);
        multiply(e.data(), width, work.data(), Dk, state.data(), width, rows, width, Dk, true);
        solve(e.data(), width, L_.data() + index * kScores, beta.data(), rows);
        if (errors != nullptr)
          copy_block(errors + index * kChunk * Dv + d0, Dv, e.data(), width, rows, width);
        scale_rows(v.data(), e.data(), beta.data(), rows, width);
        if (out.defined()) {
          chunk.load(q.data(), in_.q);
          chunk.scale(q.data(), q.data(), chunk.from_state());
          multiply(o.data(), width, q.data(), Dk, state.data(), width, rows, width, Dk, false);
          multiply(o.data(), width, A_.data() + index * kScores, kChunk, v.data(), width, rows,
                   width, rows, true);
          chunk.store(outs, o.data());
        }
        chunk.scale(k.data(), k.data(), chunk.to_state());
        multiply_left_transposed(added.data(), width, k.data(), Dk, v.data(), width, Dk, width,
                                 rows, false);
        decay_and_add(p_, state.data(), chunk.decay(), added.data(), width);
      }
      copy_block(last + head * Dk * Dv + d0, Dv, state.data(), width, Dk, width);
    });
  }

  // dstates [heads, chunks, Dk, Dv]: gradients of what leaves each chunk; adjoints (Y) [heads,
  // chunks, 64, Dv]; first [heads, Dk, Dv].
  void walk_back(const Tensor& dout, const Tensor& dstate, T* dstates, T* adjoints,
                 T* first) const {
    for_columns([&](int64_t head, int64_t d0, int64_t width) {
      const int64_t Dk = p_.Dk, Dv = p_.Dv, size = Dk * width;
      const Scratch<T> state(size), added(size), q(kChunk * Dk), k(kChunk * Dk), work(kChunk * Dk),
          y(kChunk * width), o(kChunk * width), beta(kChunk);
      if (dstate.defined())
        copy_block(state.data(), width, dstate.data<T>() + head * Dk * Dv + d0, Dv, Dk, width);
      else
        std::fill_n(state.data(), size, T{0});
      const Tensor douts = dout.slice(3, d0, d0 + width);
      for (int64_t c = p_.chunks() - 1; c >= 0; --c) {
        const int64_t index = head * p_.chunks() + c;
        const Chunk<T> chunk(p_, in_, index);
        const int64_t rows = chunk.rows();
        copy_block(dstates + index * Dk * Dv + d0, Dv, state.data(), width, Dk, width);
        chunk.load(q.data(), in_.q);
        chunk.load(k.data(), in_.k);
        chunk.load(o.data(), douts);
        chunk.load(beta.data(), in_.beta);
        chunk.scale(work.data(), k.data(), chunk.to_state());
        multiply(y.data(), width, work.data(), Dk, state.data(), width, rows, width, Dk, false);
        multiply_left_transposed(y.data(), width, A_.data() + index * kScores, kChunk, o.data(),
                                 width, rows, width, rows, true);
        solve_transposed(y.data(), width, L_.data() + index * kScores, beta.data(), rows);
        copy_block(adjoints + index * kChunk * Dv + d0, Dv, y.data(), width, rows, width);
        chunk.scale(q.data(), q.data(), chunk.from_state());
        multiply_left_transposed(added.data(), width, q.data(), Dk, o.data(), width, Dk, width,
                                 rows, false);
        chunk.scale(k.data(), k.data(), chunk.from_state());
        negate(k.data(), rows * Dk);
        scale_rows(y.data(), y.data(), beta.data(), rows, width);
        multiply_left_transposed(added.data(), width, k.data(), Dk, y.data(), width, Dk, width,
                                 rows, true);
        decay_and_add(p_, state.data(), chunk.decay(), added.data(), width);
      }
      copy_block(first + head * Dk * Dv + d0, Dv, state.data(), width, Dk, width);
    });
  }

 private:
  // f(head, first column, columns), in parallel.
  template <typename F>
  void for_columns(F&& f) const {
    const int64_t blocks = (p_.Dv + kColumns - 1) / kColumns;
    parallel_for_each(0, p_.heads() * blocks, [&](int64_t task) {
      const int64_t d0 = task % blocks * kColumns;
      f(task / blocks, d0, std::min(kColumns, p_.Dv - d0));
    });
  }

  const LinearProblem& p_;
  const DeltaInputs& in_;
  Scratch<T> A_, L_;  // [heads, chunks, 64, 64]
};

template <typename T>
void forward(const LinearProblem& p, const DeltaInputs& in, const LinearResult& result) {
  DeltaPass<T>(p, in).walk(result.state.data<T>(), result.out, nullptr, nullptr);
}

template <typename T>
void backward(const LinearProblem& p, const DeltaInputs& in, const Tensor& dout,
              const Tensor& dstate, const DeltaGrads& grads) {
  const int64_t all = p.heads() * p.chunks(), Dk = p.Dk, Dv = p.Dv, size = Dk * Dv;
  const Scratch<T> states(all * size), dstates(all * size), last(p.heads() * size),
      errors(all * kChunk * Dv), adjoints(all * kChunk * Dv);
  {
    const DeltaPass<T> pass(p, in);
    pass.walk(last.data(), Tensor(), states.data(), errors.data());
    pass.walk_back(dout, dstate, dstates.data(), adjoints.data(), grads.dstate.data<T>());
  }
  parallel_for_each(0, all, [&](int64_t index) {
    const Chunk<T> chunk(p, in, index);
    const int64_t rows = chunk.rows();
    const T *state = states.data() + index * size, *ds = dstates.data() + index * size,
            *e = errors.data() + index * kChunk * Dv, *y = adjoints.data() + index * kChunk * Dv;
    const Scratch<T> q(kChunk * Dk), k(kChunk * Dk), out(kChunk * Dv), u(kChunk * Dv),
        dv(kChunk * Dv), s(kScores), dq(kChunk * Dk), row_dk(kChunk * Dk), dk(kChunk * Dk),
        work(kChunk * Dk), beta(kChunk), dbeta(kChunk);
    chunk.load(q.data(), in.q);
    chunk.load(k.data(), in.k);
    chunk.load(out.data(), dout);
    chunk.load(beta.data(), in.beta);
    scale_rows(u.data(), e, beta.data(), rows, Dv);
    scale_rows(dv.data(), y, beta.data(), rows, Dv);
    for (int64_t i = 0; i < rows; ++i) {
      T total{0};
      for (int64_t d = 0; d < Dv; ++d) total += y[i * Dv + d] * e[i * Dv + d];
      dbeta[i] = total;
    }
    chunk.store(grads.dv, dv.data());
    chunk.store(grads.dbeta, dbeta.data());
    negate(dv.data(), rows * Dv);
    // Through the states: the keys that ask (rows of L), and the keys that are kept (columns).
    multiply_right_transposed(work.data(), Dk, out.data(), Dv, state, rows, Dk, Dv, false);
    chunk.scale(dq.data(), work.data(), chunk.from_state());
    multiply_right_transposed(work.data(), Dk, dv.data(), Dv, state, rows, Dk, Dv, false);
    chunk.scale(row_dk.data(), work.data(), chunk.from_state());
    multiply_right_transposed(work.data(), Dk, u.data(), Dv, ds, rows, Dk, Dv, false);
    chunk.scale(dk.data(), work.data(), chunk.to_state());
    // Through A and L.
    multiply_right_transposed(s.data(), kChunk, out.data(), Dv, u.data(), rows, rows, Dv, false);
    chunk.scores_backward(dq.data(), dk.data(), s.data(), q.data(), k.data(), false);
    multiply_right_transposed(s.data(), kChunk, dv.data(), Dv, u.data(), rows, rows, Dv, false);
    chunk.scores_backward(row_dk.data(), dk.data(), s.data(), k.data(), k.data(), true);
    for (int64_t i = 0; i < rows * Dk; ++i) {
      work[i] = q[i] * dq[i] + k[i] * (row_dk[i] - dk[i]);
      dk[i] += row_dk[i];
    }
    chunk.store(grads.dq, dq.data());
    chunk.store(grads.dk, dk.data());
    if (!grads.dg.defined()) return;
    const bool is_last = index % p.chunks() == p.chunks() - 1;
    chunk.store_gate_gradient(grads.dg, work.data(),
                              is_last ? last.data() + chunk.head() * size : state + size, ds);
  });
}

}  // namespace

void delta_forward_cpu(const LinearProblem& p, const DeltaInputs& in, const LinearResult& result) {
  in.q.dtype() == Dtype::f64 ? forward<double>(p, in, result) : forward<float>(p, in, result);
}

void delta_backward_cpu(const LinearProblem& p, const DeltaInputs& in, const Tensor& dout,
                        const Tensor& dstate, const DeltaGrads& grads) {
  in.q.dtype() == Dtype::f64 ? backward<double>(p, in, dout, dstate, grads)
                             : backward<float>(p, in, dout, dstate, grads);
}

}  // namespace fovea::attention
