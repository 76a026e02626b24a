// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sequences split over ranks against the undistributed engine: what tests of ranks that are threads
// and of ranks that are processes share.

#include "attention/linear/linear_test_util.h"
#include "autograd/ops.h"
#include "distributed/state.h"

namespace fovea::distributed {

struct StateCase {
  attention::LinearCase sizes;
  bool delta = false;
  std::vector<int64_t> cuts;         // P + 1 first tokens of shards
  std::vector<int64_t> starts = {};  // of documents; where sizes.documents says so: elsewhere
};

inline std::vector<int64_t> cut_evenly(int64_t N, int ranks) {
  std::vector<int64_t> cuts;
  for (int r = 0; r <= ranks; ++r) cuts.push_back(N * r / ranks);
  return cuts;
}

// All gates, ragged and empty shards, documents over several ranks and one a rank.
inline std::vector<StateCase> state_cases(int P) {
  using attention::Gates;
  std::vector<StateCase> cases;
  for (const bool delta : {false, true}) {
    for (const Gates gates : {Gates::none, Gates::head, Gates::token, Gates::channel}) {
      std::vector<int64_t> squares;
      for (int r = 0; r <= P; ++r) squares.push_back(37 * r * r / (P * P));
      cases.push_back({{2, 2, 37, 4, 3, gates, false, true}, delta, squares});
      cases.push_back(
          {{2, 1, 33, 3, 5, gates, true, gates == Gates::token}, delta, cut_evenly(33, P)});
    }
    // P > N: some shards are empty; and a start at each shard's first token.
    cases.push_back({{1, 2, 3, 4, 3, Gates::token, false, true}, delta, cut_evenly(3, P)});
    StateCase each{{1, 2, 5 * P, 4, 3, Gates::none}, delta, cut_evenly(5 * P, P)};
    each.starts.assign(each.cuts.begin(), each.cuts.end() - 1);
    cases.push_back(each);
    // Tokens over more than a chunk a rank, and the last rank with none.
    StateCase late{{1, 1, 150, 4, 3, Gates::channel, false, true}, delta, cut_evenly(150, P)};
    if (P > 1) late.cuts[static_cast<size_t>(P - 1)] = 150;
    cases.push_back(late);
  }
  return cases;
}

inline std::vector<StateOptions> all_strategies() {
  return {{StateStrategy::gather},
          {StateStrategy::chain},
          {StateStrategy::pipeline, 2},
          {StateStrategy::pipeline, 8}};
}

// Inputs of the whole sequence in f64: q, k, v, g, state, beta (absent: linear); and gradients of
// the outputs.
struct Sequence {
  Tensors x;
  Tensor starts, dout, dlast;
};
inline Sequence sequence_of(const StateCase& c) {
  const auto& s = c.sizes;
  attention::LinearInputs in = linear_case(s);
  if (c.delta)
    in.k = attention::normal(in.k.shape(), "k", 1.0 / std::sqrt(static_cast<double>(s.Dk)));
  if (!c.starts.empty()) {
    std::vector<uint8_t> starts(static_cast<size_t>(s.B * s.N));
    for (int64_t b = 0; b < s.B; ++b)
      for (const int64_t t : c.starts) starts[static_cast<size_t>(b * s.N + t)] = 1;
    in.starts = Tensor::from(starts, {s.B, s.N});
  }
  return {{in.q, in.k, in.v, in.g, in.state,
           c.delta ? attention::normal({s.B, s.H, s.N}, "beta", 0.3, 0.5) : Tensor()},
          in.starts,
          attention::normal({s.B, s.H, s.N, s.Dv}, "dout"),
          attention::normal({s.B, s.H, s.Dk, s.Dv}, "dlast")};
}

// {out, state} and the gradients of x, undistributed.
struct Whole {
  Tensors results, gradients;
};
inline Tensors gradients_of(const Variables& x) {
  Tensors gradients;
  for (const Variable& leaf : x) gradients.push_back(leaf.defined() ? leaf.grad() : Tensor());
  return gradients;
}
inline Whole whole_of(const StateCase& c) {
  const Sequence all = sequence_of(c);
  Variables x;
  for (const Tensor& t : all.x) x.push_back(t.defined() ? Variable(t, true) : Variable());
  const Variables results =
      c.delta ? attention::delta_rule(x[0], x[1], x[2], x[5], x[3], x[4], all.starts)
              : attention::linear_attention(x[0], x[1], x[2], x[3], x[4], all.starts);
  backward(results, {all.dout, all.dlast});
  return {{results[0].value(), results[1].value()}, gradients_of(x)};
}

// This rank's part of x [.., .., N, ...] or of starts [B, N].
inline Tensor part_of(const Tensor& x, int axis, const StateCase& c, int rank) {
  if (!x.defined()) return x;
  const auto r = static_cast<size_t>(rank);
  return x.slice(axis, c.cuts[r], c.cuts[r + 1]);
}

// One rank's leaves, results and gradients of results.
struct Shard {
  bool delta;
  Variables x;
  Tensor starts;
  Variables results;
  Tensors seeds;
};
inline Shard shard_of(const Communicator& comm, const StateCase& c, Dtype dtype, Device device) {
  const Sequence all = sequence_of(c);
  const int rank = comm.rank();
  const Dtype wide = dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const auto leaf = [&](const Tensor& t, Dtype to) {
    return t.defined() ? Variable(t.to(to).contiguous().to(device), true) : Variable();
  };
  Shard shard{c.delta, {}, {}, {}, {}};
  for (size_t i = 0; i < all.x.size(); ++i) {
    const Tensor& t = all.x[i];
    const bool tokens = i != 4 && t.defined() && t.rank() > 1;
    shard.x.push_back(i == 4 && rank > 0
                          ? Variable()
                          : leaf(tokens ? part_of(t, 2, c, rank) : t, i < 3 ? dtype : wide));
  }
  if (all.starts.defined()) shard.starts = part_of(all.starts, 1, c, rank).contiguous().to(device);
  shard.seeds = {part_of(all.dout, 2, c, rank).to(dtype).contiguous().to(device),
                 rank == comm.size() - 1 ? all.dlast.to(wide).to(device) : Tensor()};
  return shard;
}
inline void forward_of(Shard& shard, const Communicator& comm, const StateOptions& options) {
  const Variables& x = shard.x;
  shard.results = shard.delta
                      ? delta_rule(x[0], x[1], x[2], x[5], x[3], x[4], shard.starts, comm, options)
                      : linear_attention(x[0], x[1], x[2], x[3], x[4], shard.starts, comm, options);
}
inline void backward_of(const Shard& shard) { backward(shard.results, shard.seeds); }

// Largest difference in units of the reference's largest value (at least 1).
inline double worst(const Tensor& x, const Tensor& reference) {
  EXPECT_EQ(x.shape(), reference.shape());
  const auto a = x.to_vector<double>(), b = reference.to_vector<double>();
  double difference = 0.0, largest = 1.0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, std::isfinite(a[i]) ? std::abs(a[i] - b[i]) : INFINITY);
    largest = std::max(largest, std::abs(b[i]));
  }
  return difference / largest;
}

inline void compare_to_whole(const Communicator& comm, const StateCase& c, const Whole& whole,
                             const StateOptions& options, Dtype dtype, Device device,
                             double bound) {
  const int rank = comm.rank();
  Shard shard = shard_of(comm, c, dtype, device);
  forward_of(shard, comm, options);
  EXPECT_LT(worst(shard.results[0].value(), part_of(whole.results[0], 2, c, rank)), bound);
  if (rank == comm.size() - 1) {
    EXPECT_LT(worst(shard.results[1].value(), whole.results[1]), bound);
  }
  backward_of(shard);
  static const char* const kNames[] = {"q", "k", "v", "g", "state", "beta"};
  for (size_t i = 0; i < shard.x.size(); ++i) {
    const Tensor& reference = whole.gradients[i];
    if (!shard.x[i].defined()) continue;
    Tensor gradient = shard.x[i].grad();
    ASSERT_TRUE(gradient.defined()) << kNames[i];
    const bool tokens = i != 4 && reference.rank() > 1;
    if (i == 3 && !tokens) {  // a gate per head: the sum over ranks
      gradient = gradient.clone();
      comm.all_reduce(gradient).wait();
    }
    EXPECT_LT(worst(gradient, tokens ? part_of(reference, 2, c, rank) : reference), bound)
        << "gradient of " << kNames[i] << ", rank " << rank << " of " << comm.size() << ", "
        << (c.delta ? "delta" : "linear") << ", gates " << static_cast<int>(c.sizes.gates)
        << ", strategy " << static_cast<int>(options.strategy);
  }
}

}  // namespace fovea::distributed
