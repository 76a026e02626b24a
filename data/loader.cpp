// SPDX-License-Identifier: Apache-2.0
#include "data/loader.h"

#include "core/parallel.h"
#include "core/rng.h"

namespace fovea::data {

int64_t shuffled(int64_t index, int64_t size, uint64_t seed, uint64_t epoch) {
  FOVEA_CHECK(index >= 0 && index < size, "loader: index ", index, " of ", size);
  if (size == 1) return 0;
  int half_bits = 1;
  while ((int64_t{1} << (2 * half_bits)) < size) ++half_bits;
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  const RngKey key(seed, "shuffle", "", epoch);
  auto x = static_cast<uint64_t>(index);
  do {
    uint64_t left = x >> half_bits, right = x & mask;
    for (uint64_t round = 0; round < 6; ++round) {
      const uint64_t mixed = philox(key, (round << 48) | right)[0] & mask;
      left ^= mixed;
      std::swap(left, right);
    }
    x = (left << half_bits) | right;
  } while (x >= static_cast<uint64_t>(size));
  return static_cast<int64_t>(x);
}

Loader::Loader(const Source& source, const LoaderOptions& options)
    : source_(source), options_(options) {
  FOVEA_CHECK(
      options.batch >= 1 && options.ranks >= 1 && options.rank >= 0 && options.rank < options.ranks,
      "loader: rank ", options.rank, " of ", options.ranks, ", a batch of ", options.batch);
  FOVEA_CHECK(options.batch >= options.ranks, "loader: a batch of ", options.batch,
              " leaves some of ", options.ranks, " ranks without a sample");
  FOVEA_CHECK(source.size() >= 1, "loader: the data set ", source.description().name,
              " has no samples");
}

Loader::~Loader() { stop(); }

Batch Loader::make(int64_t position) const {
  const int64_t size = source_.size(), end = options_.begin(options_.rank + 1);
  std::vector<Sample> samples;
  for (int64_t i = options_.begin(options_.rank); i < end; ++i) {
    const int64_t ordinal = position + i;
    const auto epoch = static_cast<uint64_t>(ordinal / size);
    const int64_t at = ordinal % size;
    samples.push_back({options_.shuffle ? shuffled(at, size, options_.seed, epoch) : at, epoch,
                       static_cast<uint64_t>(ordinal)});
  }
  return source_.make(samples, options_.seed);
}

Batch Loader::next() {
  if (options_.prefetch <= 0) {
    Batch batch = make(position_);
    position_ += options_.batch;
    return batch;
  }
  if (!worker_.joinable()) {
    making_ = position_;
    worker_ = std::thread([this] { work(); });
  }
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !ready_.empty(); });
  Ready ready = std::move(ready_.front());
  ready_.pop_front();
  changed_.notify_all();
  lock.unlock();
  if (ready.error) std::rethrow_exception(ready.error);
  position_ += options_.batch;
  return std::move(ready.batch);
}

void Loader::work() {
  const SerialScope serial;  // the pool belongs to the step
  while (true) {
    int64_t position;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] {
        return stopping_ || static_cast<int64_t>(ready_.size()) < options_.prefetch;
      });
      if (stopping_) return;
      position = making_;
      making_ += options_.batch;
    }
    Ready ready;
    try {
      ready.batch = make(position);
    } catch (...) {
      ready.error = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    ready_.push_back(std::move(ready));
    changed_.notify_all();
  }
}

void Loader::stop() {
  if (!worker_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  worker_.join();
  stopping_ = false;
  ready_.clear();
}

void Loader::seek(int64_t position) {
  FOVEA_CHECK(position >= 0 && position % options_.batch == 0, "loader: position ", position,
              " is no multiple of the batch of ", options_.batch);
  stop();
  position_ = position;
}

}  // namespace fovea::data
