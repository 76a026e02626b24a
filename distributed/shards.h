// SPDX-License-Identifier: Apache-2.0
#pragma once
// The contiguous layout of a sequence over ranks: rank r holds tokens [begin(r), end(r)), in order.

#include <vector>

#include "distributed/communicator.h"

namespace fovea::distributed {

class Shards {
 public:
  // lengths[r] tokens on rank r, also none.
  explicit Shards(const std::vector<int64_t>& lengths);
  // N tokens in shards that differ by one at most, the longer first.
  static Shards even(int64_t N, int ranks);
  // Asks all ranks for their n. Collective.
  static Shards of(int64_t n, const Communicator& comm);

  int ranks() const { return static_cast<int>(begins_.size()) - 1; }
  int64_t tokens() const { return begins_.back(); }
  int64_t begin(int rank) const { return begins_[static_cast<size_t>(rank)]; }
  int64_t end(int rank) const { return begins_[static_cast<size_t>(rank) + 1]; }
  int64_t length(int rank) const { return end(rank) - begin(rank); }

  // Throws naming `op` unless there is a shard for each rank, and this rank's has n tokens.
  void check(const char* op, const Communicator& comm, int64_t n) const;

 private:
  std::vector<int64_t> begins_;  // P + 1
};

}  // namespace fovea::distributed
