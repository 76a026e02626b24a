// SPDX-License-Identifier: Apache-2.0
#include "distributed/reduce_pieces.h"

#include <array>
#include <bit>

#include "core/ops/elementwise.h"
#include "core/parallel.h"

namespace fovea::distributed {
namespace {

// The first half of a tree over n leaves: the largest power of two below n, so that subtrees start
// at multiples of their size.
size_t half(size_t n) { return std::bit_floor(n - 1); }

constexpr int64_t kBlock = 1024;  // elements; a level of the tree keeps one block

// NaN is passed on: it is larger, and smaller, than all else.
struct Sum {
  template <typename A>
  A operator()(A a, A b) const {
    return a + b;
  }
};
struct Max {
  template <typename A>
  A operator()(A a, A b) const {
    return b > a || b != b ? b : a;
  }
};
struct Min {
  template <typename A>
  A operator()(A a, A b) const {
    return b < a || b != b ? b : a;
  }
};

// total[0, n) = op over the pieces' elements [at, at + n), of which there are two at least
template <typename T, typename A, typename Op>
void tree(A* total, std::span<const Tensor> pieces, Op op, int64_t at, int64_t n) {
  const size_t first = half(pieces.size());
  const T* right = pieces[first].data<T>() + at;
  if (pieces.size() == 2) {
    const T* left = pieces[0].data<T>() + at;
    for (int64_t i = 0; i < n; ++i)
      total[i] = op(static_cast<A>(left[i]), static_cast<A>(right[i]));
    return;
  }
  tree<T, A>(total, pieces.first(first), op, at, n);
  if (pieces.size() == first + 1) {
    for (int64_t i = 0; i < n; ++i) total[i] = op(total[i], static_cast<A>(right[i]));
    return;
  }
  std::array<A, kBlock> rest;
  tree<T, A>(rest.data(), pieces.subspan(first), op, at, n);
  for (int64_t i = 0; i < n; ++i) total[i] = op(total[i], rest[static_cast<size_t>(i)]);
}

template <typename T, typename A, typename Op>
void reduce(const Tensor& out, std::span<const Tensor> pieces, Op op) {
  const int64_t n = out.numel();
  T* y = out.data<T>();
  parallel_for(0, (n + kBlock - 1) / kBlock, 16, [&](int64_t begin, int64_t end) {
    std::array<A, kBlock> total;
    for (int64_t at = begin * kBlock; at < std::min(n, end * kBlock); at += kBlock) {
      const int64_t length = std::min(kBlock, n - at);
      tree<T, A>(total.data(), pieces, op, at, length);
      for (int64_t i = 0; i < length; ++i)
        y[at + i] = static_cast<T>(total[static_cast<size_t>(i)]);
    }
  });
}

template <typename T, typename A>
void reduce(const Tensor& out, std::span<const Tensor> pieces, Reduce op) {
  switch (op) {
    case Reduce::sum:
      return reduce<T, A>(out, pieces, Sum{});
    case Reduce::max:
      return reduce<T, A>(out, pieces, Max{});
    case Reduce::min:
      return reduce<T, A>(out, pieces, Min{});
  }
}

// The sum of the pieces, in f32, on their device; a new tensor unless there is one f32 piece.
Tensor tree_on_device(std::span<const Tensor> pieces) {
  if (pieces.size() == 1) return pieces[0].to(Dtype::f32);
  const size_t first = half(pieces.size());
  return add(tree_on_device(pieces.first(first)), tree_on_device(pieces.subspan(first)));
}

void reduce_on_device(const Tensor& out, std::span<const Tensor> pieces, Reduce op) {
  if (op == Reduce::sum && is_floating(out.dtype())) return out.copy_(tree_on_device(pieces));
  std::vector<Tensor> on_host;
  for (const Tensor& piece : pieces) on_host.push_back(piece.to(kCpu));
  const Tensor result = Tensor::empty(out.shape(), out.dtype());
  reduce_pieces(result, on_host, op);
  out.copy_(result);
}

}  // namespace

void reduce_pieces(const Tensor& out, std::span<const Tensor> pieces, Reduce op) {
  if (pieces.size() == 1) return out.copy_(pieces[0]);
  if (!out.device().is_cpu()) return reduce_on_device(out, pieces, op);
  switch (out.dtype()) {
    case Dtype::f32:
      return reduce<float, float>(out, pieces, op);
    case Dtype::bf16:
      return reduce<bf16, float>(out, pieces, op);
    case Dtype::f64:
      return reduce<double, double>(out, pieces, op);
    case Dtype::i64:
      return reduce<int64_t, int64_t>(out, pieces, op);
    default:
      detail::fail("reduce: expected f32, f64, bf16 or i64, found ", out.dtype());
  }
}

}  // namespace fovea::distributed
