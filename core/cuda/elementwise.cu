// SPDX-License-Identifier: Apache-2.0
// Bytes: a and b read once, out written once; the limit is DRAM. A thread takes runs of N elements
// along the last axis, each in 16-byte accesses where layouts allow (N = 1 where they do not), and
// has the loads of all its runs in flight before the first is used. The operation is an argument:
// it costs a uniform branch.
#include "core/cuda/elementwise.h"
#include "core/cuda/kernel.cuh"

namespace FOVEA_GPU {
namespace {

using Op = fovea::Elementwise::Op;

constexpr int kThreads = 256;
constexpr int kWide = 16;  // bytes

// Elements of a wide run: 16 bytes of the narrowest operand.
template <typename A, typename B>
constexpr int kRun = kWide / (sizeof(A) < sizeof(B) ? sizeof(A) : sizeof(B));
// Runs of a thread.
constexpr int runs(int n) { return n == 1 ? 4 : 16 / n; }

// Elements a store or load moves at once.
template <typename T, int N>
constexpr int kPiece = N * sizeof(T) <= kWide ? N : kWide / sizeof(T);

// The first `valid` of N elements, `step` (0 or 1) apart.
template <int N, typename T>
__device__ inline void load_run(float (&to)[N], Global<const T> from, int64_t step, int64_t valid) {
  if (N == 1 || step == 0) {
    const T value = from[0];
    for (int j = 0; j < N; ++j) to[j] = static_cast<float>(value);
  } else if (valid == N) {
    FOVEA_UNROLL
    for (int p = 0; p < N; p += kPiece<T, N>) {
      const Vec<T, kPiece<T, N>> piece = load<kPiece<T, N>>(from + p);
      for (int j = 0; j < kPiece<T, N>; ++j) to[p + j] = static_cast<float>(piece[j]);
    }
  } else {
    FOVEA_UNROLL
    for (int j = 0; j < N; ++j) {
      if (j >= valid) continue;
      const T value = from[j];
      to[j] = static_cast<float>(value);
    }
  }
}

template <int N, typename T>
__device__ inline void store_run(Global<T> to, const float (&values)[N], int64_t valid) {
  if (valid == N) {
    FOVEA_UNROLL
    for (int p = 0; p < N; p += kPiece<T, N>) {
      Vec<T, kPiece<T, N>> piece;
      for (int j = 0; j < kPiece<T, N>; ++j) piece[j] = static_cast<T>(values[p + j]);
      store(to + p, piece);
    }
  } else {
    FOVEA_UNROLL
    for (int j = 0; j < N; ++j)
      if (j < valid) to[j] = static_cast<T>(values[j]);
  }
}

// a = a op b
template <int N>
__device__ inline void apply(Op op, float value, float (&a)[N], const float (&b)[N]) {
  switch (op) {
    case Op::add:
      for (int j = 0; j < N; ++j) a[j] += b[j];
      break;
    case Op::sub:
      for (int j = 0; j < N; ++j) a[j] -= b[j];
      break;
    case Op::mul:
      for (int j = 0; j < N; ++j) a[j] *= b[j];
      break;
    case Op::div:
      for (int j = 0; j < N; ++j) a[j] /= b[j];
      break;
    case Op::axpy:
      for (int j = 0; j < N; ++j) a[j] += value * b[j];
      break;
  }
}

// out may be a: a thread reads its elements before it writes them.
template <typename Out, typename A, typename B, int N>
__global__ void __launch_bounds__(kThreads)
    elementwise_kernel(Global<Out> out, Global<const A> a, Global<const B> b, Op op, float value,
                       Layout<3> layout) {
  constexpr int kRuns = runs(N);
  const int64_t first = (int64_t{blockIdx.x} * kThreads * kRuns + threadIdx.x) * N;
  const int64_t a_step = layout.strides[1][layout.rank - 1],
                b_step = layout.strides[2][layout.rank - 1];
  float x[kRuns][N] = {}, y[kRuns][N] = {};
  int64_t valid[kRuns], to[kRuns];
  FOVEA_UNROLL
  for (int u = 0; u < kRuns; ++u) {
    const int64_t i = first + int64_t{u} * kThreads * N;
    valid[u] = layout.count - i < N ? layout.count - i : N;
    if (valid[u] <= 0) continue;
    int64_t at[3];
    layout.locate(i, at);
    to[u] = at[0];
    load_run<N, A>(x[u], a + at[1], a_step, valid[u]);
    if (b != nullptr) {
      load_run<N, B>(y[u], b + at[2], b_step, valid[u]);
    } else {
      for (int j = 0; j < N; ++j) y[u][j] = value;
    }
  }
  FOVEA_UNROLL
  for (int u = 0; u < kRuns; ++u) {
    if (valid[u] <= 0) continue;
    apply(op, value, x[u], y[u]);
    store_run<N, Out>(out + to[u], x[u], valid[u]);
  }
}

// Whether runs of n elements of operand k lie in 16-byte pieces (or are one element, stretched).
bool is_wide(const Layout<3>& layout, int k, const void* base, int64_t element_bytes, int64_t n) {
  const int last = layout.rank - 1;
  if (layout.strides[k][last] == 0) return k > 0;
  const int64_t bytes = std::min<int64_t>(n * element_bytes, kWide);
  bool wide = layout.strides[k][last] == 1 && reinterpret_cast<uintptr_t>(base) % bytes == 0;
  for (int axis = 0; axis < last; ++axis)
    wide = wide && layout.strides[k][axis] * element_bytes % bytes == 0;
  return wide;
}

template <typename Out, typename A, typename B>
void run(const Elementwise& e, const Layout<3>& layout, Stream stream) {
  auto* out = static_cast<Out*>(e.out);
  const auto* a = static_cast<const A*>(e.a);
  const auto* b = static_cast<const B*>(e.b);
  constexpr int n = kRun<A, B>;
  const bool whole = layout.rank == 1 || layout.sizes[layout.rank - 1] % n == 0;
  if (whole && is_wide(layout, 0, out, sizeof(Out), n) && is_wide(layout, 1, a, sizeof(A), n) &&
      (b == nullptr || is_wide(layout, 2, b, sizeof(B), n))) {
    launch<elementwise_kernel<Out, A, B, n>>(ceil_div(layout.count, kThreads * n * runs(n)),
                                             kThreads, 0, stream, out, a, b, e.op, e.value, layout);
  } else {
    launch<elementwise_kernel<Out, A, B, 1>>(ceil_div(layout.count, kThreads * runs(1)), kThreads,
                                             0, stream, out, a, b, e.op, e.value, layout);
  }
}

}  // namespace

void elementwise(const Elementwise& e, const Layout<3>& layout, Stream stream) {
  if (layout.count == 0) return;
  const auto are = [&e](Dtype out, Dtype a, Dtype b) {
    return e.out_dtype == out && e.a_dtype == a && (e.b == nullptr || e.b_dtype == b);
  };
  if (are(Dtype::f32, Dtype::f32, Dtype::f32)) return run<float, float, float>(e, layout, stream);
  if (are(Dtype::bf16, Dtype::bf16, Dtype::bf16)) return run<bf16, bf16, bf16>(e, layout, stream);
  if (are(Dtype::f32, Dtype::f32, Dtype::bf16)) return run<float, float, bf16>(e, layout, stream);
  if (are(Dtype::f32, Dtype::bf16, Dtype::f32)) return run<float, bf16, float>(e, layout, stream);
  if (are(Dtype::bf16, Dtype::bf16, Dtype::f32)) return run<bf16, bf16, float>(e, layout, stream);
  fovea::detail::fail("elementwise: a GPU device has f32 and bf16, found ", e.a_dtype, " and ",
                      e.b_dtype);
}

}  // namespace FOVEA_GPU
