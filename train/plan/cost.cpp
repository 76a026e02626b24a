// SPDX-License-Identifier: Apache-2.0
#include "train/plan/cost.h"

#include <algorithm>
#include <cmath>

namespace fovea::train {
namespace {

double number(int64_t x) { return static_cast<double>(x); }

// Sizes as real numbers, of one forward pass of a rank.
struct Pass {
  double B, N, n, T;  // n: tokens of the rank; T = B n
  double C, F, up, H, G, D, V, L;
  double e, f = 4.0;
  double R, U, P;  // P = R U
  double G_rank;   // key heads that a rank holds while it attends
  double n_group;  // tokens of a group of the ring

  Pass(const GptSizes& z, const Division& d, int64_t samples)
      : B(number(samples)),
        N(number(z.tokens)),
        C(number(z.dim)),
        F(number(z.hidden)),
        up(number(z.up_columns())),
        H(number(z.heads)),
        G(number(z.kv_heads)),
        D(number(z.head_dim)),
        V(number(z.vocab)),
        L(number(z.layers)),
        e(number(size_of(z.compute))),
        R(d.mesh.ring),
        U(d.mesh.ulysses),
        P(R * U),
        G_rank(U > 1 ? std::max(G, U) / U : G),
        n_group(N / R) {
    n = std::ceil(N / P);
    T = B * n;
  }
};

}  // namespace

std::string_view name(Travel travel) {
  constexpr std::string_view kNames[] = {"-", "ring", "gather", "state"};
  return kNames[static_cast<size_t>(travel)];
}

// ---- memory -------------------------------------------------------------------------------------

double block_activations(const GptSizes& z, double T) {
  const double C = number(z.dim), e = number(size_of(z.compute)), HD = number(z.heads * z.head_dim);
  double bytes =
      2 * T * (4 * C + e * C + 8);  // sums of both norms (f32), their results, statistics
  bytes += T * (e * (number(z.qkv_columns()) + HD) + 4 * number(z.heads));  // qkv; out, lse
  bytes += T * e * number(z.up_columns() + z.hidden);  // before and after the activation
  bytes += 2 * T * e * C;                              // what both sublayers give to the stream
  if (z.norms_of_heads) bytes += T * e * number((z.heads + z.kv_heads) * z.head_dim);
  if (z.compute != Dtype::f32) bytes += e * number(z.block_matrices());  // casts of f32 masters
  return bytes;
}

MemoryCost memory_cost(const GptSizes& z, const Division& d) {
  const Pass p(z, d, d.pass());
  const double n = number(z.parameters()), ranks = number(d.ranks()),
               matrices = p.L * number(z.block_matrices());
  MemoryCost m;
  m.parameters = 4 * n;
  const double over = d.zero ? ranks : 1.0;
  m.optimizer =
      (number(d.state_bytes_matrices) * matrices + number(d.state_bytes) * (n - matrices)) / over;
  m.averages = number(d.average_bytes) * n / over;

  const double block = block_activations(z, p.T);
  const double kept = z.recompute ? p.T * (4 + p.e) * p.C : block;  // the stream and its delta
  const double ends = p.T * (4 * p.C + 8 + p.e * p.C) +             // the last norm
                      (z.compute != Dtype::f32 ? p.e * number(z.head_matrix()) : 0.0) +
                      p.T * (8 + 8) +  // tokens, targets
                      (z.position_added ? p.T * 4 * p.C : 0.0);
  // Casts of weights that several passes share stay to the end of the step.
  const double block_casts =
      z.compute != Dtype::f32 && d.passes() > 1 ? p.e * p.L * number(z.block_matrices()) : 0.0;
  const double saved = p.L * kept + ends + (z.recompute ? block_casts : 0.0);
  // Gradients between the ops of a block's backward: of the stream, twice, and of one side of the
  // MLP (the other takes the place of what it is the gradient of).
  const double between = p.T * (8 * p.C + p.e * p.F);
  const bool flat = ranks > 1;  // gradients lie in buckets that stay

  // Two moments may be the peak: the start of backward, when all is saved and the head makes its
  // gradients of the logits'; and its end, when all gradients are there.
  const double logits = p.T * p.V * p.e + p.T * p.C * p.e + 4 * p.V * p.C;
  const double start_gradients = flat || d.passes() > 1 ? 4 * n : 0.0;
  const double start = saved + logits + start_gradients;
  const double second =
      z.recompute ? saved + block + between + 4 * number(z.head_matrix()) + start_gradients : 0.0;
  const double end = 4 * n + (z.recompute ? block : 0.0) + between +
                     4 * p.V * p.C +  // the embedding's, before it is added to the head's
                     block_casts;
  if (start >= end && start >= second) {
    m.activations = saved, m.logits = logits, m.gradients = start_gradients;
  } else if (second >= end) {
    m.activations = saved + block + between;
    m.gradients = std::max(start_gradients, 4 * number(z.head_matrix()));
  } else {
    m.activations = (z.recompute ? block : 0.0) + between, m.gradients = 4 * n + 4 * p.V * p.C;
  }
  if (flat) m.exchange += number(d.bucket_bytes);

  // Attention over ranks, of the layer that is at it.
  const double keys =
      p.B * p.n_group * p.G_rank * 2 * p.D;  // elements of a group's keys and values
  if (d.travel == Travel::ring)
    m.exchange += (d.window > 0 ? 3 : 2) * keys * (p.e + p.f) +   // here, next (window); sums
                  p.B * p.n_group * p.H / p.U * (p.D + 2) * p.f;  // rows that are not finished
  if (d.travel == Travel::gather)
    m.exchange += 2 * p.B * p.N * 2 * p.D * p.e + (p.N + p.R * p.n_group) * p.B * 2 * p.D * p.f;
  if (d.travel == Travel::state) m.exchange += p.P * p.B * p.H * (p.D * p.D + 1) * p.f;
  if (d.mesh.ulysses > 1)  // q, k, v and out with the group's tokens and a share of the heads
    m.exchange += p.L * (z.recompute ? 1.0 / p.L : 1.0) * p.e *
                  (p.B * p.n_group * 2 * p.D * (p.H / p.U + p.G_rank));
  return m;
}

// ---- bytes --------------------------------------------------------------------------------------

SentBytes sent_bytes(const GptSizes& z, const Division& d, int64_t B) {
  const Pass p(z, d, B);
  SentBytes sent;
  const double keys = p.B * p.n_group * p.G_rank * 2 * p.D;
  switch (d.travel) {
    case Travel::ring:
      sent.ring_forward = sent.ring_backward = (p.R - 1) * keys * p.e;
      sent.ring_sums =
          (p.R + (d.window > 0 && number(d.window) < p.R ? p.R / number(d.window) : 0.0)) * keys *
          p.f;
      break;
    case Travel::gather:
      sent.ring_forward = sent.ring_backward = (p.R - 1) * keys * p.e;
      sent.ring_sums = (p.R - 1) * keys * p.f;
      break;
    case Travel::state:  // with a gate a head
      sent.ring_forward = sent.ring_backward = (p.R - 1) * p.B * p.H / p.U * (p.D * p.D + 1) * p.f;
      break;
    case Travel::none:
      break;
  }
  if (d.mesh.ulysses > 1)
    sent.ulysses_forward = sent.ulysses_backward =
        (p.U - 1) / p.U * (p.n_group / p.U) * p.B * 2 * p.D * (p.H + std::max(p.G, p.U)) * p.e;
  return sent;
}

double gradient_bytes(const GptSizes& z, const Division& d) {
  const double P = number(d.ranks());
  return (P - 1) / P * 2 * number(z.parameters()) * 4;  // the same for ZeRO-1
}

// ---- pairs --------------------------------------------------------------------------------------

namespace {

double pairs_of(const attention::Mask& mask, int64_t n) {
  double pairs = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    int64_t first, last;
    mask.limits(i, n, n, first, last);
    if (mask.is_interval()) {
      pairs += number(last - first);
    } else {
      for (int64_t j = first; j < last; ++j) pairs += mask.allowed(0, 0, i, j, n, n) ? 1.0 : 0.0;
    }
  }
  return pairs;
}

}  // namespace

double allowed_pairs(const GptSizes& z) {
  constexpr int64_t kMost = 2048;  // tokens of a mask that is counted pair by pair
  if (z.mask_of(1).is_interval() || z.tokens <= kMost)
    return pairs_of(z.mask_of(z.tokens), z.tokens);
  const double times = number(z.tokens) / number(kMost);
  return times * times * pairs_of(z.mask_of(kMost), kMost);
}

distributed::Balance balance_of(const GptSizes& z, const Division& d) {
  if (d.travel == Travel::none || d.travel == Travel::state) return {1.0, 1.0};
  const bool interval = z.mask_of(1).is_interval();
  const int64_t R = d.mesh.ring, chunk = interval ? 16 : 4,
                n = std::min<int64_t>(z.tokens,
                                      std::max<int64_t>(interval ? 4096 : 1024, 2 * R * chunk));
  return distributed::balance(layout_of(z, d, n), z.mask_of(n));
}

distributed::Layout layout_of(const GptSizes& z, const Division& d, int64_t n) {
  using distributed::Layout;
  const int64_t pieces = 4 * d.mesh.ring;  // as mesh.chunk = 0 has it
  return d.order == distributed::Order::dispatched
             ? Layout::dispatched(z.mask_of(n), 1, n, (n + pieces - 1) / pieces, d.mesh.ring,
                                  d.mesh.ulysses)
             : Layout(d.order, n, d.mesh.ring, d.mesh.ulysses);
}

// ---- time ---------------------------------------------------------------------------------------

namespace {

// Bytes over memory that a rank's element-wise work takes: each tensor once in, once out.
double memory_bytes(const GptSizes& z, const Division& d) {
  const Pass p(z, d, d.samples());
  const double e = p.e, C = p.C, n = number(z.parameters()),
               over = d.zero ? number(d.ranks()) : 1.0;
  // x + delta and norm: 2 reads, 2 writes of 4 C and e C; backward the gradients of both and x in,
  // that of x out, and its cast for delta.
  const double norm_forward = 2 * (4 + e) * C, norm_backward = (e + 4 * 3) * C + (4 + e) * C;
  const double act_forward = e * number(z.up_columns() + z.hidden),
               act_backward = e * number(2 * z.up_columns() + z.hidden);
  const double biases = (z.bias ? e * (p.up + C) : 0.0) +
                        (z.attention_bias ? e * (number(z.qkv_columns()) + C) : 0.0);
  const double forward = 2 * norm_forward + act_forward;
  const double block = forward * (z.recompute ? 2 : 1) + 2 * norm_backward + act_backward + biases;
  const double ends = norm_forward + norm_backward + 4 * 4 * C + 2 * e * p.V;
  // Once a step: casts of the weights, the norm of gradients, the optimizer.
  const double casts =
      z.compute == Dtype::f32
          ? 0.0
          : (z.recompute && d.passes() == 1 ? 2 : 1) * (4 + e) * p.L * number(z.block_matrices()) +
                (4 + e) * number(z.head_matrix());
  const double more_passes = number(d.passes() - 1) * 12 * n;
  const double optimizer =
      4 * n + n / over * (12 + 2 * number(d.state_bytes) + 3 * number(d.average_bytes));
  return p.T * (p.L * block + ends) + casts + more_passes + optimizer;
}

// What is left of sending in a time of computing.
void overlap(double send, double compute, double& exposed, double& hidden) {
  exposed += std::max(0.0, send - compute);
  hidden += std::min(send, compute);
}

// The slowest link that a group of `ranks` neighbours `apart` ranks from each other uses.
double link(const Machine& m, int64_t ranks, int64_t apart) {
  return m.node > 0 && ranks * apart > m.node ? m.network : m.bandwidth;
}

void attention_exchange(TimeCost& t, const GptSizes& z, const Division& d, const Machine& m,
                        double forward, double backward) {
  const SentBytes sent = sent_bytes(z, d, d.pass());
  const double times = number(d.passes() * z.layers), R = d.mesh.ring, U = d.mesh.ulysses,
               G = number(z.kv_heads), ring = link(m, d.mesh.ring, d.mesh.ulysses),
               all_to_all = link(m, d.mesh.ulysses, 1);
  const double twice = z.recompute ? 2.0 : 1.0;  // forward runs again
  forward /= times * twice, backward /= times;   // of one layer and pass
  TimeCost one;
  if (d.travel == Travel::ring && d.window > 0) {
    // A hop of the inner ring against a step; one between windows against the w steps of a window.
    const double w = number(d.window), W = R / w, inner = link(m, d.window, d.mesh.ulysses),
                 keys = sent.ring_forward / (R - 1), sums = sent.ring_sums / (R + W);
    const auto hops = [&](double bytes, double compute, TimeCost& cost) {
      for (double hop = 0; hop < W * (w - 1); ++hop)
        overlap(bytes / inner + m.latency, compute / R, cost.ring, cost.hidden);
      for (double hop = 1; hop < W; ++hop)
        overlap(bytes / ring + m.latency, w * compute / R, cost.ring, cost.hidden);
    };
    TimeCost pass;
    hops(keys, forward, pass);
    one.ring += twice * pass.ring, one.hidden += twice * pass.hidden;
    hops(keys + sums, backward, one);
    one.ring += W * (sums / inner + m.latency) + sums / ring + m.latency;  // home
  } else if (d.travel == Travel::ring) {
    // A hop against a step of R: keys of the next step while these are attended.
    const double hop = sent.ring_forward / (R - 1) / ring + m.latency;
    TimeCost pass;
    for (int s = 1; s < d.mesh.ring; ++s) overlap(hop, forward / R, pass.ring, pass.hidden);
    one.ring += twice * pass.ring, one.hidden += twice * pass.hidden;
    const double sums = sent.ring_sums / R / ring + m.latency;
    for (int s = 1; s < d.mesh.ring; ++s) overlap(hop + sums, backward / R, one.ring, one.hidden);
    one.ring += sums;  // the last one goes home
  } else if (d.travel == Travel::gather) {
    // A group of heads' against the one before it; the first has nothing to hide behind.
    const double heads = std::max(1.0, U > 1 ? std::max(G, U) / U : G);
    const double part = sent.ring_forward / heads / ring + m.latency,
                 sums = sent.ring_sums / heads / ring + m.latency;
    TimeCost pass;
    pass.ring += part;
    for (double h = 1; h < heads; ++h) overlap(part, forward / heads, pass.ring, pass.hidden);
    one.ring += twice * pass.ring + part + sums, one.hidden += twice * pass.hidden;
    for (double h = 1; h < heads; ++h) overlap(part + sums, backward / heads, one.ring, one.hidden);
  } else if (d.travel == Travel::state && d.mesh.ring > 1) {
    one.ring += (1 + twice) * (sent.ring_forward / ring + m.latency);
  }
  if (d.mesh.ulysses > 1)
    one.ulysses = twice * (sent.ulysses_forward / all_to_all + 4 * m.latency) +
                  sent.ulysses_backward / all_to_all + 4 * m.latency;
  t.ring += times * one.ring;
  t.ulysses += times * one.ulysses;
  t.hidden += times * one.hidden;
}

}  // namespace

TimeCost time_cost(const GptSizes& z, const Division& d, const Machine& m, double pairs,
                   const distributed::Balance& balance) {
  const Pass p(z, d, d.samples());
  const double matrices = p.L * number(z.block_matrices()), head = number(z.head_matrix());
  TimeCost t;
  t.products = p.T * (2 * matrices * (z.recompute ? 4 : 3) + 6 * head) / m.products;
  t.memory_bound = memory_bytes(z, d) / m.memory_bandwidth;
  // 4 pairs D forward and 2.5 times that backward; of a linear layer in chunks of c tokens 2 D^2
  // for the state, 2 D^2 for its queries and 2 c D within the chunk, and over ranks the state once
  // more before the run.
  double flops = p.B * p.L * p.H * 4 * pairs * p.D / p.P;
  if (d.travel == Travel::state) {
    constexpr double c = 64;
    flops = p.T * p.L * p.H * (4 * p.D * p.D + 2 * c * p.D + (p.R > 1 ? 2 * p.D * p.D : 0.0));
  }
  t.balance = d.travel == Travel::ring ? balance.stepwise : balance.total;
  const double forward = t.balance * flops * (z.recompute ? 2 : 1) / m.attention,
               backward = t.balance * 2.5 * flops / m.attention_backward;
  t.attention = forward + backward;
  attention_exchange(t, z, d, m, forward, backward);

  const double P = number(d.ranks());
  if (P > 1) {
    const double bytes = gradient_bytes(z, d), node = m.node > 0 ? number(m.node) : P,
                 away = std::max(0.0, P - node) / (P - 1);
    const double seconds = std::max((1 - away) * bytes / m.bandwidth, away * bytes / m.network),
                 buckets = std::ceil(4 * number(z.parameters()) / number(d.bucket_bytes)),
                 one = seconds / 2 / buckets + m.latency;  // a bucket, one way
    // Both ways of a sum, or half of them (ZeRO-1), hide behind the last pass's backward, but for
    // the last bucket; ZeRO-1's weights come back after the update.
    const double behind = (d.zero ? 1 : 2) * buckets * one,
                 compute = (2.0 / 3.0 * t.products + backward) / number(d.passes());
    double exposed = (d.zero ? 1 : 2) * one;
    overlap(behind - exposed, compute, exposed, t.hidden);
    t.gradients = exposed + (d.zero ? buckets * one : 0.0);
  }
  return t;
}

}  // namespace fovea::train
