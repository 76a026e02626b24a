// SPDX-License-Identifier: Apache-2.0
#pragma once
// A chunk of one head on the CPU: its decays, and the products of its rows under them. T is float
// (tiles of attention/score/tile.h) or double (plain loops). Internal to the linear and the delta
// engine.
//
// Decays per channel would overflow as e^b_i e^-b_j. Rows are split in sub-chunks of 16 instead
// (2312.06635 section 4): with s(I) the last token before sub-chunk I and t(J) the last one of
// sub-chunk J < I, b_i - b_j = (b_i - b_s(I)) + (b_s(I) - b_t(J)) + (b_t(J) - b_j), three sums of
// gates; within a sub-chunk each term has its own exponential.

#include <type_traits>

#include "attention/linear/decay.h"
#include "attention/linear/problem.h"
#include "attention/score/format.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace fovea::attention {

inline void exp_all(double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = std::exp(x[i]);
}
inline void exp_all(float* x, int64_t n) { FOVEA_SIMD_CALL(exp_all, x, n); }
void decayed_products(double* s, const double* q, const double* k, const double* b, int64_t rows,
                      int64_t channels);
void decayed_products_backward(double* dq, double* dk, const double* ds, const double* q,
                               const double* k, const double* b, int64_t rows, int64_t channels);
inline void decayed_products(float* s, const float* q, const float* k, const float* b, int64_t rows,
                             int64_t channels) {
  FOVEA_SIMD_CALL(decayed_products, s, q, k, b, rows, channels);
}
inline void decayed_products_backward(float* dq, float* dk, const float* ds, const float* q,
                                      const float* k, const float* b, int64_t rows,
                                      int64_t channels) {
  FOVEA_SIMD_CALL(decayed_products_backward, dq, dk, ds, q, k, b, rows, channels);
}

// ---- products of row-major matrices -------------------------------------------------------------

template <typename T>
using Format = std::conditional_t<std::is_same_v<T, double>, F64, F32>;

// c [m, n] (ldc) = or += a [m, k] (lda) b [k, n] (ldb)
template <typename T>
void multiply(T* c, int64_t ldc, const T* a, int64_t lda, const T* b, int64_t ldb, int64_t m,
              int64_t n, int64_t k, bool accumulate) {
  Format<T>::product(c, ldc, {a, lda, 1}, b, ldb, m, n, k, accumulate);
}
// c = or += a^T b with a [k, m] (lda)
template <typename T>
void multiply_left_transposed(T* c, int64_t ldc, const T* a, int64_t lda, const T* b, int64_t ldb,
                              int64_t m, int64_t n, int64_t k, bool accumulate) {
  Format<T>::product(c, ldc, {a, 1, lda}, b, ldb, m, n, k, accumulate);
}
// c = or += a b^T with b [n, k], its rows one after another
template <typename T>
void multiply_right_transposed(T* c, int64_t ldc, const T* a, int64_t lda, const T* b, int64_t m,
                               int64_t n, int64_t k, bool accumulate) {
  const Scratch<T> panel(k * kScoreTile);
  for (int64_t j = 0; j < n; j += kScoreTile) {
    const int64_t columns = std::min(kScoreTile, n - j);
    Format<T>::transpose(panel.data(), b + j * k, columns, k);
    Format<T>::product(c + j, ldc, {a, lda, 1}, panel.data(), kScoreTile, m, columns, k,
                       accumulate);
  }
}

// ---- the chunk ----------------------------------------------------------------------------------

template <typename T>
class Chunk {
 public:
  // Chunk index % chunks of head index / chunks.
  Chunk(const LinearProblem& p, const LinearInputs& in, int64_t index);

  int64_t rows() const { return rows_; }
  int64_t head() const { return head_; }
  // e^b_i for what the state that enters gives row i; e^(b_last - b_i) for what row i gives to the
  // state that leaves; [rows, G], 0 across a start.
  const T* from_state() const { return from_state_.data(); }
  const T* to_state() const { return to_state_.data(); }
  // e^b_last, or 0 with a start; [G]
  const T* decay() const { return decay_.data(); }

  // Its rows of x [B, H, N, D], and back.
  TileRows rows_of(const Tensor& x) const {
    const int64_t offset =
        head_ / p_.H * x.stride(0) + head_ % p_.H * x.stride(1) + first_ * x.stride(2);
    return {static_cast<std::byte*>(x.raw()) + offset * size_of(x.dtype()), x.dtype(), x.stride(2),
            rows_, x.dim(3)};
  }
  void load(T* to, const Tensor& x) const { Format<T>::load(to, rows_of(x)); }
  void store(const Tensor& x, const T* from) const { Format<T>::store(rows_of(x), from, 1.0); }

  // to [rows, Dk] = or += x factors, factors [rows, G]
  void scale(T* to, const T* x, const T* factors, bool accumulate = false) const {
    for (int64_t i = 0; i < rows_; ++i, to += p_.Dk, x += p_.Dk, factors += p_.G) {
      if (p_.G == 1) {
        const T f = factors[0];
        for (int64_t c = 0; c < p_.Dk; ++c) to[c] = x[c] * f + (accumulate ? to[c] : T{0});
      } else {
        for (int64_t c = 0; c < p_.Dk; ++c) to[c] = x[c] * factors[c] + (accumulate ? to[c] : T{0});
      }
    }
  }

  // s [rows, 64]: s_ij = sum_c q_ic k_jc e^(b_ic - b_jc) for j <= i (j < i when strict) in one
  // document; else 0.
  void scores(T* s, const T* q, const T* k, bool strict) const;
  // dq [rows, Dk], dk [rows, Dk] += what ds brings them; ds is masked in place first.
  void scores_backward(T* dq, T* dk, T* ds, const T* q, const T* k, bool strict) const;

  // dg's rows from db [rows, Dk], the gradient of b in units of channels, and the state that leaves
  // with its gradient, both [Dk, Dv].
  void store_gate_gradient(const Tensor& dg, const T* db, const T* state, const T* dstate) const;

 private:
  bool one_document(int64_t i, int64_t j) const { return document_[i] == document_[j]; }
  void mask(T* s, bool strict) const;
  // Sub-chunk pairs: queries of I, and keys before it, with their decays.
  void near_queries(T* to, const T* q, int64_t i0, int64_t count) const;
  void far_factors(T* to, int64_t i0) const;  // [i0, Dk]

  const LinearProblem& p_;
  const int64_t head_, first_, rows_;
  int64_t document_[kChunk];  // starts at or before a row, within the chunk
  Scratch<T> b_;              // [rows, G]
  Scratch<T> from_state_, to_state_, decay_;
  Scratch<T> ratio_;  // e^(b_i - b_j), 0 where row i does not see row j; [rows, 64], one gate
  Scratch<T> near_start_, near_end_;  // e^(b_i - b_s(I)), e^(b_t(J) - b_j); [rows, Dk], Dk gates
};

extern template class Chunk<float>;
extern template class Chunk<double>;

// states [heads, chunks, Dk, Dv] holds what each chunk adds; becomes the state that enters it (with
// reverse: the gradient of the state that leaves it). decays [heads, chunks, G]. first (or null: 0)
// and last (or null): [heads, Dk, Dv].
template <typename T>
void scan_states(const LinearProblem& p, T* states, const T* decays, const T* first, T* last,
                 bool reverse) {
  const int64_t chunks = p.chunks(), grain = std::max<int64_t>(1, 16384 / (chunks * p.Dv + 1));
  parallel_for(0, p.heads() * p.Dk, grain, [&](int64_t begin, int64_t end) {
    const Scratch<T> row(p.Dv);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t head = r / p.Dk, c = r % p.Dk;
      for (int64_t v = 0; v < p.Dv; ++v) row[v] = first == nullptr ? T{0} : first[r * p.Dv + v];
      for (int64_t step = 0; step < chunks; ++step) {
        const int64_t chunk = head * chunks + (reverse ? chunks - 1 - step : step);
        const T decay = decays[chunk * p.G + (p.G == 1 ? 0 : c)];
        T* state = states + (chunk * p.Dk + c) * p.Dv;
        for (int64_t v = 0; v < p.Dv; ++v) {
          const T added = state[v];
          state[v] = row[v];
          row[v] = decay * row[v] + added;
        }
      }
      if (last != nullptr) std::copy_n(row.data(), p.Dv, last + r * p.Dv);
    }
  });
}

}  // namespace fovea::attention
