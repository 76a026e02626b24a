// SPDX-License-Identifier: Apache-2.0
// Bytes an element: AdamW 28 (p, m, v in and out, g in), SGD and Lion 20, momentum 16, EMA 12,
// scale 8, the norm 4: all bound by memory. A block takes a chunk of 16,384 elements in steps of 4
// a thread; two steps are in flight, 16 bytes an access (AdamW: 8 loads). Determinism: elementwise;
// the norm adds in an order that is a function of the sizes alone.
#include "core/cuda/kernel.cuh"
#include "train/optim/cuda/update.h"

namespace FOVEA_GPU {
namespace {

constexpr int kThreads = 256;

// What one element is to a rule.
struct Element {
  float p, m, v;
};

// ---- rules: f(element, gradient, decays) --------------------------------------------------------

struct AdamwRule {
  static constexpr bool kReadsP = true, kFirst = true, kSecond = true;
  using Step = fovea::AdamwStep;
  Step s;
  __device__ void operator()(Element& e, float g, bool decays) const {
    e.m = fma(s.beta1, e.m, (1.0f - s.beta1) * g);
    e.v = fma(s.beta2, e.v, (1.0f - s.beta2) * (g * g));
    const float update = e.m / fma(sqrtf(e.v), s.root_scale, s.eps);
    e.p = fma(-s.step_size, update, decays ? s.shrink * e.p : e.p);
  }
};

struct SgdRule {
  static constexpr bool kReadsP = true, kFirst = true, kSecond = false;
  using Step = fovea::SgdStep;
  Step s;
  __device__ void operator()(Element& e, float g, bool decays) const {
    e.m = fma(s.mu, e.m, g);
    const float update = s.nesterov ? fma(s.mu, e.m, g) : e.m;
    e.p = fma(-s.lr, update, decays ? s.shrink * e.p : e.p);
  }
};

struct LionRule {
  static constexpr bool kReadsP = true, kFirst = true, kSecond = false;
  using Step = fovea::LionStep;
  Step s;
  __device__ void operator()(Element& e, float g, bool decays) const {
    const float direction = fma(s.beta1, e.m, (1.0f - s.beta1) * g);
    // A NaN stays one.
    const float sign = direction > 0.0f ? 1.0f : direction < 0.0f ? -1.0f : direction;
    e.p = fma(-s.lr, sign, decays ? s.shrink * e.p : e.p);
    e.m = fma(s.beta2, e.m, (1.0f - s.beta2) * g);
  }
};

struct MomentumRule {
  static constexpr bool kReadsP = false, kFirst = true, kSecond = false;
  using Step = float;
  Step mu;
  __device__ void operator()(Element& e, float g, bool) const {
    e.m = fma(mu, e.m, g);
    e.p = fma(mu, e.m, g);
  }
};

struct MuonRule {
  static constexpr bool kReadsP = true, kFirst = false, kSecond = false;
  using Step = fovea::MuonStep;
  Step s;
  __device__ void operator()(Element& e, float g, bool) const {
    e.p = fma(-s.lr, g, s.shrink * e.p);
  }
};

struct ScaleRule {
  static constexpr bool kReadsP = false, kFirst = false, kSecond = false;
  struct Step {};
  Step nothing;
  __device__ void operator()(Element& e, float g, bool) const { e.p = g; }
};

struct EmaRule {
  static constexpr bool kReadsP = true, kFirst = false, kSecond = false;
  using Step = float;
  Step rest;
  __device__ void operator()(Element& e, float g, bool) const { e.p = fma(rest, g - e.p, e.p); }
};

// ---- one launch over all chunks -----------------------------------------------------------------

__device__ inline float factor_of(const fovea::GradientFactor& f) {
  if (f.norm == nullptr) return f.value;
  const Global<const float> at = f.norm;
  const float norm = at[0];
  if (f.most == 0.0f) return 1.0f / (norm + 1e-7f);
  return norm > f.most ? f.most / norm : 1.0f;
}

template <typename Rule>
__global__ void __launch_bounds__(kThreads)
    update_kernel(Global<const fovea::UpdateEntry> entries, Global<const fovea::UpdateChunk> chunks,
                  fovea::GradientFactor given, typename Rule::Step step,
                  Global<const typename Rule::Step> step_at) {
  if (step_at != nullptr) step = step_at[0];
  const Rule rule{step};
  const fovea::UpdateChunk chunk = chunks[blockIdx.x];
  const fovea::UpdateEntry entry = entries[chunk.entry];
  const Global<float> p = entry.p, m = entry.m, v = entry.v;
  const Global<const float> g = entry.g;
  const float factor = factor_of(given);
  const bool decays = entry.decays != 0;
  const int64_t begin = chunk.index * fovea::kUpdateChunk;
  const int64_t left = entry.n - begin;
  const int64_t end = begin + (left < fovea::kUpdateChunk ? left : fovea::kUpdateChunk);
  const int64_t whole = entry.aligned != 0 ? begin + (end - begin) / 4 * 4 : begin;
#pragma unroll 2
  for (int64_t i = begin + static_cast<int64_t>(threadIdx.x) * 4; i < whole; i += kThreads * 4) {
    Vec<float, 4> P{}, M{}, V{};
    const Vec<float, 4> G = load<4>(g + i);
    if constexpr (Rule::kReadsP) P = load<4>(p + i);
    if constexpr (Rule::kFirst) M = load<4>(m + i);
    if constexpr (Rule::kSecond) V = load<4>(v + i);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Element e{P[k], M[k], V[k]};
      rule(e, factor * G[k], decays);
      P[k] = e.p;
      M[k] = e.m;
      V[k] = e.v;
    }
    store(p + i, P);
    if constexpr (Rule::kFirst) store(m + i, M);
    if constexpr (Rule::kSecond) store(v + i, V);
  }
  for (int64_t i = whole + threadIdx.x; i < end; i += kThreads) {
    Element e{};
    if constexpr (Rule::kReadsP) e.p = p[i];
    if constexpr (Rule::kFirst) e.m = m[i];
    if constexpr (Rule::kSecond) e.v = v[i];
    const float gradient = g[i];
    rule(e, factor * gradient, decays);
    p[i] = e.p;
    if constexpr (Rule::kFirst) m[i] = e.m;
    if constexpr (Rule::kSecond) v[i] = e.v;
  }
}

// The rule's numbers: `step`, or, where it is not null, what `step_at` points to.
template <typename Rule>
void update(const fovea::UpdateTable& table, const fovea::GradientFactor& factor,
            const typename Rule::Step& step, const typename Rule::Step* step_at, Stream stream) {
  if (table.count == 0) return;
  launch<update_kernel<Rule>>(table.count, kThreads, 0, stream, table.entries, table.chunks, factor,
                              step, step_at);
}

// ---- the norm -----------------------------------------------------------------------------------

// Over all threads of the block; the first gets the result.
__device__ inline double sum_in_f64(double x, Shared<double> room) {
  x = Lanes<32>::sum(x);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (lane == 0) room[warp] = x;
  sync_block();
  double sum = 0.0;
  if (threadIdx.x == 0) {
    for (int w = 0; w < kThreads / 32; ++w) sum += room[w];
  }
  return sum;
}

__device__ inline double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

__global__ void __launch_bounds__(kThreads)
    squares_kernel(Global<double> partial, Global<const fovea::UpdateEntry> entries,
                   Global<const fovea::UpdateChunk> chunks) {
  FOVEA_SHARED(double, room, kThreads / 32);
  const fovea::UpdateChunk chunk = chunks[blockIdx.x];
  const fovea::UpdateEntry entry = entries[chunk.entry];
  const Global<const float> g = entry.g;
  const int64_t begin = chunk.index * fovea::kUpdateChunk;
  const int64_t left = entry.n - begin;
  const int64_t end = begin + (left < fovea::kUpdateChunk ? left : fovea::kUpdateChunk);
  const int64_t whole = entry.aligned != 0 ? begin + (end - begin) / 4 * 4 : begin;
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = begin + static_cast<int64_t>(threadIdx.x) * 4; i < whole; i += kThreads * 4) {
    const Vec<float, 4> G = load<4>(g + i);
    sum += (square(G[0]) + square(G[1])) + (square(G[2]) + square(G[3]));
  }
  for (int64_t i = whole + threadIdx.x; i < end; i += kThreads) {
    const float gradient = g[i];
    sum += square(gradient);
  }
  sum = sum_in_f64(sum, room);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    norm_kernel(Global<float> norm, Global<const double> partial, int64_t count) {
  FOVEA_SHARED(double, room, kThreads / 32);
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  sum = sum_in_f64(sum, room);
  if (threadIdx.x == 0) norm[0] = static_cast<float>(sqrt(sum));
}

}  // namespace

void adamw_step(const fovea::UpdateTable& table, const fovea::GradientFactor& factor,
                const fovea::AdamwStep* step, Stream stream) {
  update<AdamwRule>(table, factor, {}, step, stream);
}
void sgd_step(const fovea::UpdateTable& table, const fovea::GradientFactor& factor,
              const fovea::SgdStep* step, Stream stream) {
  update<SgdRule>(table, factor, {}, step, stream);
}
void lion_step(const fovea::UpdateTable& table, const fovea::GradientFactor& factor,
               const fovea::LionStep* step, Stream stream) {
  update<LionRule>(table, factor, {}, step, stream);
}
void muon_step(const fovea::UpdateTable& table, const fovea::MuonStep* step, Stream stream) {
  update<MuonRule>(table, {}, {}, step, stream);
}
void momentum_step(const fovea::UpdateTable& table, const fovea::GradientFactor& factor, float mu,
                   Stream stream) {
  update<MomentumRule>(table, factor, mu, nullptr, stream);
}
void scale_step(const fovea::UpdateTable& table, const fovea::GradientFactor& factor,
                Stream stream) {
  update<ScaleRule>(table, factor, {}, nullptr, stream);
}
void ema_step(const fovea::UpdateTable& table, float rest, Stream stream) {
  update<EmaRule>(table, {}, rest, nullptr, stream);
}
void gradient_norm(float* norm, double* partial, const fovea::UpdateTable& table, Stream stream) {
  if (table.count > 0)
    launch<squares_kernel>(table.count, kThreads, 0, stream, partial, table.entries, table.chunks);
  launch<norm_kernel>(1, kThreads, 0, stream, norm, partial, table.count);
}

}  // namespace FOVEA_GPU
