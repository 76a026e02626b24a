// SPDX-License-Identifier: Apache-2.0
#include "attention/linear/chunk.h"

namespace fovea::attention {

void decayed_products(double* s, const double* q, const double* k, const double* b, int64_t rows,
                      int64_t channels) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double total = 0.0;
      for (int64_t c = 0; c < channels; ++c)
        total += q[i * channels + c] * k[j * channels + c] *
                 std::exp(b[i * channels + c] - b[j * channels + c]);
      s[i * kChunk + j] = total;
    }
  }
}

void decayed_products_backward(double* dq, double* dk, const double* ds, const double* q,
                               const double* k, const double* b, int64_t rows, int64_t channels) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      for (int64_t c = 0; c < channels; ++c) {
        const double scaled =
            ds[i * kChunk + j] * std::exp(b[i * channels + c] - b[j * channels + c]);
        dq[i * channels + c] += scaled * k[j * channels + c];
        dk[j * channels + c] += scaled * q[i * channels + c];
      }
    }
  }
}

template <typename T>
Chunk<T>::Chunk(const LinearProblem& p, const LinearInputs& in, int64_t index)
    : p_(p),
      head_(index / p.chunks()),
      first_(index % p.chunks() * kChunk),
      rows_(std::min(kChunk, p.N - first_)),
      b_(rows_ * p.G),
      from_state_(rows_ * p.G),
      to_state_(rows_ * p.G),
      decay_(p.G),
      ratio_(p.G == 1 ? rows_ * kChunk : 0),
      near_start_(p.G == 1 ? 0 : rows_ * p.G),
      near_end_(p.G == 1 ? 0 : rows_ * p.G) {
  const int64_t G = p.G;
  if (in.g.defined())
    load(b_.data(), in.g);
  else
    std::fill_n(b_.data(), rows_ * G, T{0});
  const uint8_t* starts =
      in.starts.defined() ? in.starts.data<uint8_t>() + head_ / p.H * p.N + first_ : nullptr;
  for (int64_t i = 0; i < rows_; ++i) {
    const bool start = starts != nullptr && starts[i] != 0;
    document_[i] = (i > 0 ? document_[i - 1] : 0) + (start ? 1 : 0);
    T* row = b_.data() + i * G;
    for (int64_t c = 0; c < G; ++c)
      row[c] = (start ? T{0} : row[c]) + (i > 0 ? row[c - G] : T{0});  // nothing is kept: no gate
  }
  const T* last = b_.data() + (rows_ - 1) * G;
  for (int64_t i = 0; i < rows_; ++i) {
    for (int64_t c = 0; c < G; ++c) {
      from_state_[i * G + c] = document_[i] == 0 ? b_[i * G + c] : -INFINITY;
      to_state_[i * G + c] = one_document(i, rows_ - 1) ? last[c] - b_[i * G + c] : -INFINITY;
    }
  }
  exp_all(from_state_.data(), rows_ * G);
  exp_all(to_state_.data(), rows_ * G);
  std::copy_n(from_state_.data() + (rows_ - 1) * G, G, decay_.data());
  if (G == 1) {
    for (int64_t i = 0; i < rows_; ++i) {
      T* row = ratio_.data() + i * kChunk;
      for (int64_t j = 0; j < kChunk; ++j)
        row[j] = j <= i && one_document(i, j) ? b_[i] - b_[j] : -INFINITY;
      if (in.g.defined())
        exp_all(row, kChunk);
      else
        for (int64_t j = 0; j < kChunk; ++j) row[j] = row[j] == T{0} ? T{1} : T{0};
    }
    return;
  }
  for (int64_t i = 0; i < rows_; ++i) {
    const int64_t i0 = i - i % kSubChunk, end = std::min(i0 + kSubChunk, rows_) - 1;
    for (int64_t c = 0; c < G; ++c) {
      near_start_[i * G + c] = b_[i * G + c] - (i0 > 0 ? b_[(i0 - 1) * G + c] : T{0});
      near_end_[i * G + c] = b_[end * G + c] - b_[i * G + c];
    }
  }
  exp_all(near_start_.data(), rows_ * G);
  exp_all(near_end_.data(), rows_ * G);
}

template <typename T>
void Chunk<T>::mask(T* s, bool strict) const {
  for (int64_t i = 0; i < rows_; ++i) {
    for (int64_t j = 0; j < kChunk; ++j) {
      if (j > i || (strict && j == i) || !one_document(i, j)) s[i * kChunk + j] = T{0};
    }
  }
}

template <typename T>
void Chunk<T>::near_queries(T* to, const T* q, int64_t i0, int64_t count) const {
  for (int64_t e = 0; e < count * p_.Dk; ++e)
    to[e] = q[i0 * p_.Dk + e] * near_start_[i0 * p_.Dk + e];
}

template <typename T>
void Chunk<T>::far_factors(T* to, int64_t i0) const {
  const int64_t D = p_.Dk;
  const Scratch<T> between(D);
  for (int64_t j0 = 0; j0 < i0; j0 += kSubChunk) {
    for (int64_t c = 0; c < D; ++c)
      between[c] = b_[(i0 - 1) * D + c] - b_[(j0 + kSubChunk - 1) * D + c];
    exp_all(between.data(), D);
    for (int64_t j = j0; j < j0 + kSubChunk; ++j) {
      for (int64_t c = 0; c < D; ++c) to[j * D + c] = near_end_[j * D + c] * between[c];
    }
  }
}

template <typename T>
void Chunk<T>::scores(T* s, const T* q, const T* k, bool strict) const {
  const int64_t D = p_.Dk;
  if (p_.G == 1) {
    multiply_right_transposed(s, kChunk, q, D, k, rows_, rows_, D, false);
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; j < rows_; ++j) s[i * kChunk + j] *= ratio_[i * kChunk + j];
    }
  } else {
    const Scratch<T> queries(kSubChunk * D), keys(kChunk * D);
    for (int64_t i0 = 0; i0 < rows_; i0 += kSubChunk) {
      const int64_t count = std::min(kSubChunk, rows_ - i0);
      if (i0 > 0) {
        near_queries(queries.data(), q, i0, count);
        far_factors(keys.data(), i0);
        for (int64_t e = 0; e < i0 * D; ++e) keys[e] *= k[e];
        multiply_right_transposed(s + i0 * kChunk, kChunk, queries.data(), D, keys.data(), count,
                                  i0, D, false);
      }
      decayed_products(s + i0 * kChunk + i0, q + i0 * D, k + i0 * D, b_.data() + i0 * D, count, D);
    }
  }
  mask(s, strict);
}

template <typename T>
void Chunk<T>::scores_backward(T* dq, T* dk, T* ds, const T* q, const T* k, bool strict) const {
  const int64_t D = p_.Dk;
  mask(ds, strict);
  if (p_.G == 1) {
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; j < rows_; ++j) ds[i * kChunk + j] *= ratio_[i * kChunk + j];
    }
    multiply(dq, D, ds, kChunk, k, D, rows_, D, rows_, true);
    multiply_left_transposed(dk, D, ds, kChunk, q, D, rows_, D, rows_, true);
    return;
  }
  const Scratch<T> queries(kSubChunk * D), factors(kChunk * D), keys(kChunk * D), part(kChunk * D);
  for (int64_t i0 = 0; i0 < rows_; i0 += kSubChunk) {
    const int64_t count = std::min(kSubChunk, rows_ - i0);
    const T* weights = ds + i0 * kChunk;
    if (i0 > 0) {
      near_queries(queries.data(), q, i0, count);
      far_factors(factors.data(), i0);
      for (int64_t e = 0; e < i0 * D; ++e) keys[e] = k[e] * factors[e];
      multiply(part.data(), D, weights, kChunk, keys.data(), D, count, D, i0, false);
      for (int64_t e = 0; e < count * D; ++e) dq[i0 * D + e] += part[e] * near_start_[i0 * D + e];
      multiply_left_transposed(part.data(), D, weights, kChunk, queries.data(), D, i0, D, count,
                               false);
      for (int64_t e = 0; e < i0 * D; ++e) dk[e] += part[e] * factors[e];
    }
    decayed_products_backward(dq + i0 * D, dk + i0 * D, weights + i0, q + i0 * D, k + i0 * D,
                              b_.data() + i0 * D, count, D);
  }
}

template <typename T>
void Chunk<T>::store_gate_gradient(const Tensor& dg, const T* db, const T* state,
                                   const T* dstate) const {
  const int64_t G = p_.G;
  const Scratch<T> sums(G, T{0}), gradient(rows_ * G);
  for (int64_t c = 0; c < p_.Dk; ++c) {
    T total{0};
    for (int64_t v = 0; v < p_.Dv; ++v) total += state[c * p_.Dv + v] * dstate[c * p_.Dv + v];
    sums[G == 1 ? 0 : c] += total;
  }
  for (int64_t i = rows_ - 1; i >= 0; --i) {
    for (int64_t c = 0; c < p_.Dk; ++c) sums[G == 1 ? 0 : c] += db[i * p_.Dk + c];
    const bool start = document_[i] != (i > 0 ? document_[i - 1] : 0);
    for (int64_t c = 0; c < G; ++c) {
      gradient[i * G + c] = start ? T{0} : sums[c];
      if (start) sums[c] = T{0};
    }
  }
  store(dg, gradient.data());
}

template class Chunk<float>;
template class Chunk<double>;

}  // namespace fovea::attention
