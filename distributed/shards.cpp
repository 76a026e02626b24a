// SPDX-License-Identifier: Apache-2.0
#include "distributed/shards.h"

namespace fovea::distributed {

Shards::Shards(const std::vector<int64_t>& lengths) : begins_{0} {
  FOVEA_CHECK(!lengths.empty(), "shards: expected at least one rank");
  for (const int64_t length : lengths) {
    FOVEA_CHECK(length >= 0, "shards: rank ", begins_.size() - 1, " has ", length, " tokens");
    begins_.push_back(begins_.back() + length);
  }
}

Shards Shards::even(int64_t N, int ranks) {
  FOVEA_CHECK(N >= 0 && ranks >= 1, "shards: ", N, " tokens over ", ranks, " ranks");
  std::vector<int64_t> lengths;
  for (int r = 0; r < ranks; ++r) lengths.push_back(N / ranks + (r < N % ranks ? 1 : 0));
  return Shards(lengths);
}

Shards Shards::of(int64_t n, const Communicator& comm) {
  const Tensor all = Tensor::empty({comm.size()}, Dtype::i64);
  comm.all_gather(all, Tensor::from(std::vector<int64_t>{n}, {1})).wait();
  return Shards(all.to_vector<int64_t>());
}

void Shards::check(const char* op, const Communicator& comm, int64_t n) const {
  FOVEA_CHECK(ranks() == comm.size(), op, ": shards for ", ranks(), " ranks, but there are ",
              comm.size());
  FOVEA_CHECK(length(comm.rank()) == n, op, ": rank ", comm.rank(), " gives ", n,
              " tokens, its shard has ", length(comm.rank()));
}

}  // namespace fovea::distributed
