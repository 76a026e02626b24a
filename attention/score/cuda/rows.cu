// SPDX-License-Identifier: Apache-2.0
// Kernels of rows around the score engine's own, all limited by memory: each value is read once and
// written once, neighbouring threads take neighbouring values, four loads in flight a thread.
// Sums have a fixed order.
#include "attention/score/cuda/arguments.cuh"

namespace FOVEA_GPU {
namespace {

constexpr int kThreads = 256, kEach = 4;

// Rotary positions (2104.09864): y = x cos + partner sin, with the sign in the table.
template <typename To, typename From>
__global__ void __launch_bounds__(kThreads)
    turn_kernel(Global<To> out, Rows<const From> out_rows, Rows<const From> x,
                Global<const float> cosine, Global<const float> sine, attention::TurnedRows rows) {
  const int count = rows.N * rows.width,
            parts = (count + kThreads * kEach - 1) / (kThreads * kEach);
  const int bh = static_cast<int>(blockIdx.x) / parts, part = static_cast<int>(blockIdx.x) % parts,
            b = bh / rows.H, h = bh % rows.H, half = rows.D / 2;
  const Global<const From> from = x.at(b, h);
  const Global<To> to = out + (b * out_rows.batch + h * out_rows.head);
  FOVEA_UNROLL
  for (int u = 0; u < kEach; ++u) {
    const int e = (part * kEach + u) * kThreads + static_cast<int>(threadIdx.x);
    if (e >= count) return;
    const int n = e / rows.width, d = e % rows.width;
    float value = 0.0f;
    if (d < rows.D) value = static_cast<float>(from[n * x.row + d]);
    if (d < rows.D && !(cosine == nullptr)) {
      const int partner = rows.interleaved ? d ^ 1 : d < half ? d + half : d - half;
      const float other = static_cast<float>(from[n * x.row + partner]);
      const int64_t at = int64_t{rows.first_position + n * rows.step} * rows.D + d;
      const float c = cosine[at], s = sine[at];
      value = value * c + rows.direction * s * other;
    }
    to[n * out_rows.row + d] = static_cast<To>(value);
  }
}

template <typename To, typename From>
void turn(const attention::TurnedRows& r, Stream stream) {
  const int64_t count = int64_t{r.N} * r.width;
  launch<turn_kernel<To, From>>(
      ceil_div(count, kThreads * kEach) * r.B * r.H, kThreads, 0, stream,
      static_cast<To*>(r.out.data), Rows<const From>{nullptr, r.out.batch, r.out.head, r.out.row},
      Rows<const From>{static_cast<const From*>(r.x.data), r.x.batch, r.x.head, r.x.row}, r.cosine,
      r.sine, r);
}

// kLanes lanes a row, each 16 bytes at a time of rows that lie on 16-byte boundaries.
template <int kLanes>
__global__ void __launch_bounds__(kThreads) delta_bf16_kernel(Arguments<bf16> a) {
  constexpr int kWide = 8;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  if (row >= int64_t{a.B} * a.H * a.N) return;
  const int i = static_cast<int>(row % a.N), bh = static_cast<int>(row / a.N);
  const Global<const bf16> out = a.result.at(bh / a.H, bh % a.H) + i * a.result.row,
                           dout = a.dout.at(bh / a.H, bh % a.H) + i * a.dout.row;
  float sum = 0.0f;
  for (int d = Lanes<kLanes>::rank() * kWide; d < a.Dv; d += kLanes * kWide) {
    const Vec<bf16, kWide> x = load<kWide>(out + d), y = load<kWide>(dout + d);
    FOVEA_UNROLL
    for (int e = 0; e < kWide; ++e)
      sum = fma(static_cast<float>(x[e]), static_cast<float>(y[e]), sum);
  }
  sum = Lanes<kLanes>::sum(sum);
  if (Lanes<kLanes>::rank() == 0) a.delta[row] = sum;
}

// A warp a row.
template <typename T>
__global__ void __launch_bounds__(kThreads) delta_kernel(Arguments<T> a) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (row >= int64_t{a.B} * a.H * a.N) return;
  const int i = static_cast<int>(row % a.N), bh = static_cast<int>(row / a.N);
  const Global<const T> out = a.result.at(bh / a.H, bh % a.H) + i * a.result.row,
                        dout = a.dout.at(bh / a.H, bh % a.H) + i * a.dout.row;
  float sum = 0.0f;
  FOVEA_UNROLL_BY(4)
  for (int d = lane; d < a.Dv; d += kWarp) {
    const float x = static_cast<float>(out[d]), y = static_cast<float>(dout[d]);
    sum += x * y;
  }
  sum = warp_sum(sum);
  if (lane == 0) a.delta[row] = sum;
}

// A warp a row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(Rows<T> out, Global<float> lse, Global<const float> acc, Global<const float> m,
                  Global<const float> l, attention::FinishedRows rows) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (row >= int64_t{rows.B} * rows.H * rows.N) return;
  const int i = static_cast<int>(row % rows.N), bh = static_cast<int>(row / rows.N);
  float factor = 1.0f, statistic = 0.0f;
  if (rows.normalised) {
    const float total = l[row];
    factor = total == 0.0f ? 0.0f : 1.0f / total;
    statistic = total;
    if (rows.online) {
      const float top = m[row];
      statistic = total == 0.0f ? -INFINITY : top * kLn2 + logf(total);
    }
  }
  const Global<T> to = out.at(bh / rows.H, bh % rows.H) + i * out.row;
  for (int d = lane; d < rows.Dv; d += kWarp) {
    const float x = acc[row * rows.Dv + d];
    to[d] = static_cast<T>(x * factor);
  }
  if (lane == 0) lse[row] = statistic;
}

template <typename T>
void finish(const attention::FinishedRows& r, Stream stream) {
  launch<finish_kernel<T>>(ceil_div(int64_t{r.B} * r.H * r.N, kThreads / kWarp), kThreads, 0,
                           stream,
                           Rows<T>{static_cast<T*>(r.out.data), r.out.batch, r.out.head, r.out.row},
                           r.lse, r.acc, r.m, r.l, r);
}

// A block a head.
__global__ void __launch_bounds__(kThreads)
    dsink_kernel(Global<float> dsink, Global<const float> sink, Global<const float> lse,
                 Global<const float> delta, int B, int H, int N) {
  FOVEA_SHARED(float, room, 32);
  const int h = static_cast<int>(blockIdx.x);
  const float score = sink[h];
  float sum = 0.0f;
  for (int64_t e = threadIdx.x; e < int64_t{B} * N; e += kThreads) {
    const int64_t at = (e / N * H + h) * N + e % N;
    const float l = lse[at], d = delta[at];
    sum -= expf(score - l) * d;
  }
  sum = block_sum(sum, room);
  if (threadIdx.x == 0) dsink[h] = sum;
}

__global__ void __launch_bounds__(kThreads)
    sum_kernel(Global<float> out, Global<const float> x, int B, int H, int batches, int heads,
               int64_t n) {
  const int64_t e = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (e >= batches * heads * n) return;
  const int64_t slice = e / n, at = e % n;
  const int b0 = static_cast<int>(slice / heads), h0 = static_cast<int>(slice % heads);
  float sum = 0.0f;
  for (int b = b0; b < B; b += batches) {
    for (int h = h0; h < H; h += heads) sum += x[(int64_t{b} * H + h) * n + at];
  }
  out[e] = sum;
}

// Whether all rows of width Dv are whole accesses of 16 bytes.
bool whole_accesses(const attention::ScoreRows& r, int Dv) {
  return reinterpret_cast<uintptr_t>(r.data) % 16 == 0 &&
         ((r.batch | r.head | r.row | Dv) & 7) == 0;
}
template <int kLanes>
void delta_bf16(const attention::ScoreCall& call, Stream stream) {
  launch<delta_bf16_kernel<kLanes>>(ceil_div(int64_t{call.B} * call.H * call.N, kThreads / kLanes),
                                    kThreads, 0, stream, arguments<bf16, SoftmaxRule>(call));
}
template <typename T>
void delta(const attention::ScoreCall& call, Stream stream) {
  launch<delta_kernel<T>>(ceil_div(int64_t{call.B} * call.H * call.N, kThreads / kWarp), kThreads,
                          0, stream, arguments<T, SoftmaxRule>(call));
}

}  // namespace

void turn_rows(const attention::TurnedRows& r, Stream stream) {
  if (int64_t{r.B} * r.H * r.N * r.width == 0) return;
  if (r.x.dtype == Dtype::bf16) return turn<bf16, bf16>(r, stream);
  if (r.out.dtype == Dtype::bf16) return turn<bf16, float>(r, stream);
  turn<float, float>(r, stream);
}

void score_delta(const attention::ScoreCall& call, Stream stream) {
  if (call.q.dtype != Dtype::bf16)
    delta<float>(call, stream);
  else if (whole_accesses(call.out, call.Dv) && whole_accesses(call.dout, call.Dv))
    call.Dv <= 64 ? delta_bf16<8>(call, stream) : delta_bf16<16>(call, stream);
  else
    delta<bf16>(call, stream);
}

void score_finish(const attention::FinishedRows& rows, Stream stream) {
  if (rows.out.dtype == Dtype::bf16)
    finish<bf16>(rows, stream);
  else
    finish<float>(rows, stream);
}

void score_dsink(float* dsink, const attention::ScoreCall& call, Stream stream) {
  launch<dsink_kernel>(call.H, kThreads, 0, stream, dsink, call.sink,
                       static_cast<const float*>(call.lse), static_cast<const float*>(call.delta),
                       call.B, call.H, call.N);
}

void sum_shared(float* out, const float* x, int B, int H, bool share_batch, bool share_heads,
                int64_t n, Stream stream) {
  const int batches = share_batch ? 1 : B, heads = share_heads ? 1 : H;
  launch<sum_kernel>(ceil_div(batches * heads * n, kThreads), kThreads, 0, stream, out, x, B, H,
                     batches, heads, n);
}

}  // namespace FOVEA_GPU
