// SPDX-License-Identifier: Apache-2.0
#pragma once
// The collectives as exchanges of messages: one operation as its ranks see it, and the algorithms,
// on flat contiguous tensors at the transport's home.

#include <algorithm>
#include <mutex>

#include "distributed/communicator.h"
#include "distributed/transport.h"

namespace fovea::distributed {

// What the handles of a communicator and its operations under way share.
class Counters {
 public:
  void add(Operation operation, const CommStats::Count& more);
  CommStats stats();
  void reset();

 private:
  std::mutex mutex_;
  CommStats stats_;
};

// One operation: what its messages need to be sent, counted and, if they stay away, reported.
struct Call {
  std::shared_ptr<Transport> transport;
  std::shared_ptr<Counters> counters;
  Operation operation;
  int64_t number;  // of a collective; the tag of send and receive
  double limit;    // seconds
  Dtype dtype;
  int64_t numel;
  bool caller_waits = true;  // else the caller is elsewhere

  int rank() const { return transport->rank(); }
  int size() const { return transport->size(); }
  bool collective() const {
    return operation != Operation::send && operation != Operation::receive;
  }

  // Empty messages are neither sent nor received.
  std::shared_ptr<InFlight> post(std::vector<Message> receives, std::vector<Message> sends) const;
  // Throws TimedOut, and ends the job, at the limit.
  void wait(InFlight& exchange) const;
  void exchange(std::vector<Message> receives, std::vector<Message> sends) const;
  void waited(double seconds) const { counters->add(operation, {0, 0, 0, seconds}); }
};

// Elements of a flat tensor, cut into a part for each rank.
struct Cut {
  std::vector<int64_t> begins;  // P + 1

  // Parts that differ by one element at most, the longer first.
  static Cut even(int64_t n, int ranks);
  static Cut of(const std::vector<int64_t>& counts);
  int64_t length(int part) const {
    const auto p = static_cast<size_t>(part);
    return begins[p + 1] - begins[p];
  }
  // Elements [from, to) of the part, or less where it ends before.
  Tensor part(const Tensor& x, int part, int64_t from, int64_t to) const {
    const int64_t begin = begins[static_cast<size_t>(part)], n = length(part);
    return x.slice(0, begin + std::min(n, from), begin + std::min(n, to));
  }
  Tensor part(const Tensor& x, int index) const { return part(x, index, 0, length(index)); }
};

// out = op over the ranks of part `rank` of their `in`
void reduce_scatter_parts(const Call& call, const Tensor& out, const Tensor& in, const Cut& cut,
                          Reduce op);
// Part r of x becomes that of rank r, everywhere.
void gather_parts(const Call& call, const Tensor& x, const Cut& cut);
// Part b of rank a's `in` becomes part a of rank b's `out`.
void exchange_parts(const Call& call, const Tensor& out, const Cut& out_cut, const Tensor& in,
                    const Cut& in_cut);
// x becomes the root's.
void broadcast_parts(const Call& call, const Tensor& x, int root);

}  // namespace fovea::distributed
