// SPDX-License-Identifier: Apache-2.0
#pragma once
// Loader: which samples make step k's batch. Each epoch goes through the source once in an order
// that is a keyed permutation of the indices; a batch may span epochs. The whole state is one
// integer, the samples drawn so far. A thread prepares the next batches meanwhile.

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "data/source.h"

namespace fovea::data {

struct LoaderOptions {
  int64_t batch = 32;  // samples over all ranks
  uint64_t seed = 1;
  bool shuffle = true;
  int64_t rank = 0,
          ranks = 1;     // this rank takes samples [begin(rank), begin(rank + 1)) of each batch
  int64_t prefetch = 2;  // batches made ahead

  // Shares differ by one sample at most, the larger first.
  int64_t begin(int64_t r) const { return batch / ranks * r + std::min(r, batch % ranks); }
};

// Position `index` of the permutation of [0, size) named by (seed, epoch): a Feistel network over
// the next power of four, walked until it lands inside. No memory.
int64_t shuffled(int64_t index, int64_t size, uint64_t seed, uint64_t epoch);

class Loader {
 public:
  // `source` outlives the loader. Throws unless there is a sample for each rank.
  Loader(const Source& source, const LoaderOptions& options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // This rank's part of the next batch. Rethrows what went wrong while making it.
  Batch next();
  // Samples drawn so far, over all ranks: a multiple of the batch.
  int64_t position() const { return position_; }
  void seek(int64_t position);

 private:
  Batch make(int64_t position) const;
  void work();
  void stop();

  const Source& source_;
  LoaderOptions options_;
  int64_t position_ = 0;

  struct Ready {
    Batch batch;
    std::exception_ptr error;
  };
  std::thread worker_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Ready> ready_;
  int64_t making_ = 0;  // position of the batch that the worker makes next
  bool stopping_ = false;
};

}  // namespace fovea::data
