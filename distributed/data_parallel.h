// SPDX-License-Identifier: Apache-2.0
#pragma once
// Data parallel training: every rank computes the gradient of its own samples, and all move the
// same weights by the sum. The loss is a sum over the whole batch, so gradients are summed, never
// averaged.
//
// Parameters lie behind one another in flat buckets, those that backward reaches first in the
// first. A bucket is sent while backward goes on, as soon as its last gradient is there, in order:
// with shard = false by an all_reduce; with shard = true (ZeRO-1, 1910.02054) by a reduce_scatter
// that leaves each rank the sum of its own part, from which it alone moves its part of the weights,
// with the optimizer's state of that part; an all_gather brings the weights back together.
//
// Parameters whose step needs all of them (Muon's matrices) are not cut: each is owned by one rank.
// By cost, the largest first, each goes to the rank that has least. They have buckets of their own,
// in which rank r's matrices are part r; such a bucket goes on until no part is half longer than
// the mean, so that exchanges stay balanced.
//
// Bytes sent by a rank in a step, P ranks, n elements in all buckets with their padding, of which
// n_r are rank r's parts (n / P where all is cut), K parameters:
//   shard = false   (P-1)/P 2 n 4              and for both  (P-1)/P 2 (K + numbers) 8
//   shard = true    ((n - n_r) + (P-1) n_r) 4
// The same over all ranks: 2 (P-1) n 4. The numbers go by the host's group.
//
// Both ways give the same bits, on all ranks: sums over ranks are the communicator's fixed tree.
//
// With exact = true the sums are exact (core/ops/exact_sum.h): every gradient that backward brings,
// one for each use of a parameter, is added as it comes, and the gradients of the step are the sums
// over uses, passes and ranks, rounded once. Their bits do not depend on the number of ranks. No
// buckets, elements() is 0: after backward a rank sends 2 (P-1)/P n 16 bytes of n elements.

#include <string>
#include <vector>

#include "core/ops/exact_sum.h"
#include "distributed/communicator.h"
#include "nn/module.h"

namespace fovea::distributed {

struct DataParallelOptions {
  int64_t bucket_bytes = 8 << 20;  // a bucket is sent when it has about as many
  bool shard = false;
  bool overlap = true;  // else buckets are sent after backward
  // Of each parameter, for shard: the cost of a step that needs all of it; 0: it may be cut. Empty:
  // all may.
  std::vector<int64_t> whole = {};
  bool exact = false;  // without shard
};

class DataParallel {
 public:
  using Parameters = std::vector<nn::NamedParameter>;

  // tensors: the group for gradients and weights (device_group.h); host: of the same ranks, for
  // numbers, hashes and what goes to a checkpoint. parameters: contiguous f32 on one device, the
  // same on all ranks (else refused on all, by hash). With shard their values move into flat
  // memory. Collective.
  DataParallel(const Communicator& tensors, const Communicator& host, Parameters parameters,
               const DataParallelOptions& options);
  ~DataParallel();
  DataParallel(const DataParallel&) = delete;
  DataParallel& operator=(const DataParallel&) = delete;

  // What this rank moves: the parameters, or its pieces of them as views, under the same names and
  // of as many dimensions: [n], [1, n], .. of what is cut, the parameter's shape of what is not.
  const Parameters& own() const { return options_.shard ? pieces_ : parameters_; }

  // The next backward pass is this rank's last of the step: what arrives is final. One that does
  // not come (no sample of this rank counts) adds nothing.
  void arm();
  // Sends what is left and waits: the gradients of own() are sums over the ranks.
  void finish();
  // Sums of `numbers` over the ranks. After it a parameter that has no gradient on any rank has
  // none. Throws on all ranks where an exact sum could not hold a gradient of one.
  std::vector<double> sum(std::vector<double> numbers);
  // After own() has moved: the weights of all ranks. Nothing without shard.
  void gather();

  // Throws on all ranks, naming one, unless they hold the same weights, bit for bit. Collective.
  void check_weights() const;

  // Where own()'s elements of a parameter lie in it: from `from` on, row-major. Throws for a
  // parameter of which this rank has none.
  struct Place {
    Shape whole;
    int64_t from = 0;
  };
  Place place(const std::string& parameter) const;

  int64_t elements() const;      // n above
  int64_t own_elements() const;  // n_r
  size_t buckets() const { return buckets_.size(); }
  // Of the last step: how many were sent before backward had ended.
  size_t early_buckets() const { return early_; }

 private:
  // Of a bucket's n elements, the parameter's are [begin, begin + numel).
  struct Part {
    size_t parameter;
    int64_t begin;
  };
  struct Bucket {
    int64_t n = 0;
    std::vector<Part> parts;
    std::vector<int64_t> counts;  // elements of each rank; equal where parameters are cut
    Tensor gradients, weights;    // [n] f32; weights with shard
    int64_t missing = 0;          // parameters whose last gradient is still to come
    Work work;
  };
  // The part of a parameter that is this rank's: elements [from, from + n) of it, at `at` of the
  // bucket.
  struct Piece {
    size_t parameter, bucket;
    int64_t from, n, at;
  };

  void add_exactly();
  void finish_exact();
  std::vector<int> owners() const;
  void make_buckets();
  void close(Bucket bucket, const std::vector<int>& owners);
  void make_pieces();
  void arrived(size_t parameter);
  void send_ready();
  void send(Bucket& bucket);
  // Pieces of `rank`, in order.
  std::vector<Piece> pieces_of(int rank) const;
  Tensor shard_of(const Bucket& bucket, const Tensor& flat) const;

  const Communicator comm_, host_;
  const Parameters parameters_;
  const DataParallelOptions options_;
  std::vector<Bucket> buckets_;
  std::vector<size_t> bucket_of_;  // by parameter
  std::vector<ExactSum> sums_;     // by parameter, if exact
  Parameters pieces_;
  std::vector<Piece> places_;  // of pieces_

  bool armed_ = false;
  size_t next_ = 0, early_ = 0;  // buckets sent
  // By parameter: whether this rank had a gradient; NaN: one that is none, or too large for exact.
  std::vector<double> present_;
  std::vector<int64_t> arrivals_;  // of this backward
  std::vector<int64_t> uses_;      // arrivals of the first; empty: there was none yet
};

}  // namespace fovea::distributed
