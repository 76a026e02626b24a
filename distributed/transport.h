// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a back end supplies: messages between the ranks of a group. Everything else (collectives,
// order, counts, limits) is built on it once, in communicator.cpp.

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace fovea::distributed {

using Clock = std::chrono::steady_clock;

// Contiguous elements for, or room for those of, another rank. Never empty.
struct Message {
  int peer = 0;
  Tensor data;
};

// Messages under way together. It holds their tensors until they have arrived, dropped or not.
class InFlight {
 public:
  virtual ~InFlight() = default;
  // True when all have arrived. Throws when one cannot (sizes differ, another rank failed).
  virtual bool test() = 0;
  // Waits no longer than `until`; true when all have arrived.
  virtual bool wait(Clock::time_point until) = 0;
  // Ranks whose messages are missing, ascending.
  virtual std::vector<int> missing() = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // "threads", "mpi", ...
  virtual std::string_view name() const = 0;
  // The number in the whole job of a rank of this group.
  virtual int job_rank(int rank) const = 0;
  // Where the tensors live that it exchanges; those of other devices go through a buffer there.
  virtual Device home() const { return kCpu; }
  // Messages are matched in the order posted, whatever their tags: everything must be posted in
  // one order on all ranks.
  virtual bool in_order() const { return false; }
  // Matched by (peer, tag), and in order within these. Does not block. background: progress is
  // wanted while nobody waits.
  virtual std::shared_ptr<InFlight> post(int64_t tag, std::vector<Message> receives,
                                         std::vector<Message> sends, bool background) = 0;
  // The group of those who give the same color; members: their ranks here, in the order of the new
  // ones. number: which split of this transport it is. Called by all ranks at once.
  virtual std::shared_ptr<Transport> split(int color, const std::vector<int>& members,
                                           int number) = 0;
  // Ends all waits of the job, now and later.
  virtual void abort(const std::string& why) noexcept = 0;
};

// The largest tag plus one.
inline constexpr int64_t kTags = int64_t{1} << 31;

}  // namespace fovea::distributed
