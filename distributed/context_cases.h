// SPDX-License-Identifier: Apache-2.0
#pragma once
// Attention over ranks against the undistributed engine: what tests of ranks that are threads and
// of ranks that are processes share.

#include <gtest/gtest.h>

#include "attention/score/score_test_util.h"
#include "distributed/context_attention.h"
#include "distributed/state_cases.h"

namespace fovea::distributed {

using attention::Mask;
using attention::random_tensor;

// A whole problem, in f64.
struct ContextCase {
  Tensor q, k, v, dout, sink, slopes;
  Mask mask;
  attention::ScoreOptions options;
  const ScoreRule* rule = &softmax_rule();
};
inline ContextCase context_case(int64_t B, int64_t H, int64_t G, int64_t N, const Mask& mask) {
  const int64_t D = 4, Dv = 6;
  return {random_tensor({B, H, N, D}, "q"),
          random_tensor({B, G, N, D}, "k"),
          random_tensor({B, G, N, Dv}, "v"),
          random_tensor({B, H, N, Dv}, "dout"),
          Tensor(),
          Tensor(),
          mask,
          {}};
}

struct ContextResults {
  Tensor out, dq, dk, dv, dsink;
};
inline ContextResults whole_of(const ContextCase& p) {
  const attention::ScoreInputs in{p.q, p.k, p.v, p.slopes, p.sink};
  const attention::ScoreResult result = attention::score_forward(*p.rule, in, p.mask, p.options);
  const attention::ScoreGrads grads =
      attention::score_backward(*p.rule, p.dout, result, in, p.mask, p.options);
  return {result.out, grads.dq, grads.dk, grads.dv, grads.dsink};
}

// This rank's part of the problem: call, then backward.
struct OneRank {
  Variable q, k, v, sink, out;
  Tensor dout;

  OneRank(const ContextAttention& attend, int ring, int ulysses, const ContextCase& p, Dtype dtype,
          Device device) {
    const auto shard = [&](const Tensor& x) {
      return attend.layout().take(x, 2, ring, ulysses).to(dtype).to(device);
    };
    q = Variable(shard(p.q), true);
    k = Variable(shard(p.k), true);
    v = Variable(shard(p.v), true);
    dout = shard(p.dout);
    const Dtype wide = dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
    if (p.sink.defined()) sink = Variable(p.sink.to(wide).to(device), true);
    out = attend(*p.rule, q, k, v, sink, p.slopes, p.mask, p.options);
  }
  void backward() const { out.backward(dout); }
};

inline void compare_to_whole(const Mesh& mesh, const Layout& layout, const ContextOptions& options,
                             const ContextCase& p, const ContextResults& whole, Dtype dtype,
                             Device device, double bound) {
  const ContextAttention attend(mesh.ring(), mesh.ulysses(), layout, options);
  const int ring = mesh.place().ring, ulysses = mesh.place().ulysses;
  const OneRank rank(attend, ring, ulysses, p, dtype, device);
  rank.backward();
  const auto expect_part = [&](const Tensor& x, const Tensor& of, const char* what) {
    EXPECT_LT(worst(x, attend.layout().take(of, 2, ring, ulysses)), bound)
        << what << ", ring " << mesh.sizes().ring << " x ulysses " << mesh.sizes().ulysses
        << ", rank " << ring << ' ' << ulysses << ", " << name(layout.order()) << ", exchange "
        << static_cast<int>(options.exchange) << ", window " << options.window << ", N "
        << p.q.dim(2);
  };
  expect_part(rank.out.value(), whole.out, "out");
  expect_part(rank.q.grad(), whole.dq, "dq");
  expect_part(rank.k.grad(), whole.dk, "dk");
  expect_part(rank.v.grad(), whole.dv, "dv");
  if (!p.sink.defined()) return;
  const Tensor dsink = rank.sink.grad().clone();
  mesh.context().all_reduce(dsink).wait();
  EXPECT_LT(worst(dsink, whole.dsink), bound) << "dsink";
}

inline void compare_to_whole(const Mesh& mesh, Order order, const ContextOptions& options,
                             const ContextCase& p, const ContextResults& whole, Dtype dtype,
                             Device device, double bound) {
  compare_to_whole(mesh, Layout(order, p.q.dim(2), mesh.sizes().ring, mesh.sizes().ulysses),
                   options, p, whole, dtype, device, bound);
}

inline std::vector<ContextOptions> all_options(int ring) {
  std::vector<ContextOptions> all{{}, {Exchange::gather, 0, 1}, {Exchange::gather, 0, 3}};
  for (int w = 1; w < ring; ++w)
    if (ring % w == 0) all.push_back({Exchange::ring, w, 1});
  return all;
}
inline const Order kOrders[] = {Order::contiguous, Order::striped, Order::zigzag};

inline std::vector<MeshSizes> meshes(int P) {
  std::vector<MeshSizes> all;
  for (int U = 1; U <= std::min(P, 4); ++U)
    if (P % U == 0) all.push_back({1, P / U, U});
  return all;
}
// Query and key heads for groups of U ranks: grouped, and fewer key heads than ranks.
inline std::pair<int64_t, int64_t> heads_for(int U) {
  return U == 1 ? std::pair<int64_t, int64_t>{4, 2}
                : std::pair<int64_t, int64_t>{2 * U, U == 4 ? 2 : U};
}

inline Tensor ids(int64_t B, int64_t N, const std::function<int64_t(int64_t, int64_t)>& id) {
  const Tensor all = Tensor::empty({B, N}, Dtype::i32);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < N; ++i) all.data<int32_t>()[b * N + i] = static_cast<int32_t>(id(b, i));
  return all;
}
inline Mask documents(int64_t B, int64_t N, bool causal,
                      const std::function<int64_t(int64_t, int64_t)>& id) {
  const Tensor all = ids(B, N, id);
  Mask mask;
  if (causal) mask.causal();
  return mask.documents(all, all);
}
// Every second block, and none for the second row of blocks.
inline Mask blocks(int64_t H, int64_t N) {
  const int64_t rows = (N + 4) / 5, columns = (N + 6) / 7;
  std::vector<uint8_t> on;
  for (int64_t h = 0; h < H; ++h)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) on.push_back(r != 1 && (h + r + c) % 2 == 0);
  return Mask().block_sparse(Tensor::from(on, {H, rows, columns}), 5, 7);
}

struct NamedMask {
  const char* name;
  Mask mask;
};
inline std::vector<NamedMask> masks(int64_t B, int64_t H, int64_t N) {
  return {
      {"full", Mask()},
      {"causal", Mask().causal()},
      {"window", Mask().window(4, 2)},
      {"causal window", Mask().causal().window(9, -1)},
      {"prefix", Mask().causal().prefix(std::min<int64_t>(N, 10))},
      {"documents", documents(B, N, true, [](int64_t b, int64_t i) { return (i + 3 * b) / 9; })},
      {"padded documents",
       documents(B, N, false, [&](int64_t, int64_t i) { return i >= N - 5 ? -1 : i / 11; })},
      {"one document", documents(B, N, true, [](int64_t, int64_t) { return 0; })},
      {"a document a token", documents(B, N, false, [](int64_t, int64_t i) { return i; })},
      {"nothing", documents(B, N, false, [](int64_t, int64_t) { return -1; })},
      {"blocks", blocks(H, N)},
      {"global window", attention::global_window(N, 4, 2, 3)},
      {"question and answers",
       attention::packed_documents(attention::document_ids({N / 4, N / 3, N / 5}, N),
                                   attention::Packed::question)},
  };
}

}  // namespace fovea::distributed
