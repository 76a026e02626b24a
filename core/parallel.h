// SPDX-License-Identifier: Apache-2.0
#pragma once
// The one thread pool (OpenMP). Splits are functions of the range alone unless said otherwise, and
// results never depend on the number of threads: a caller that reduces does so over fixed blocks,
// in order.

#include <algorithm>
#include <cstdint>
#include <exception>

namespace fovea {

// Threads used from now on by parallel_for and by oneDNN, by all host threads without a
// ThreadShare. Default: OMP_NUM_THREADS, else the cores.
int num_threads();
void set_num_threads(int threads);

// f(begin, end) over contiguous pieces of [begin, end), one a thread, each at least `grain` long
// (except the last). Runs inline when one piece is enough or when already inside a parallel region.
// The first exception is rethrown.
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, F&& f);

// f(i) for i in [begin, end), handed out one at a time in order: put the longest work first.
template <typename F>
void parallel_for_each(int64_t begin, int64_t end, F&& f);

// While one lives, the calling host thread uses this many threads instead: the share of a rank that
// has the cores in common with others.
class ThreadShare {
 public:
  explicit ThreadShare(int threads);
  ~ThreadShare();
  ThreadShare(const ThreadShare&) = delete;
  ThreadShare& operator=(const ThreadShare&) = delete;

 private:
  int before_, omp_before_;
};

// While one lives on this thread, parallel_for runs inline (a thread beside the pool, like the data
// loader's).
class SerialScope {
 public:
  SerialScope();
  ~SerialScope();
  SerialScope(const SerialScope&) = delete;
  SerialScope& operator=(const SerialScope&) = delete;

 private:
  bool before_;
};

namespace detail {
// Inside a parallel region or a SerialScope.
bool in_parallel_region();

// Keeps the first exception thrown in a team (OpenMP may not let one out of a region).
class FirstException {
 public:
  template <typename F>
  void run(F&& f) noexcept {
    try {
      f();
    } catch (...) {
#pragma omp critical(fovea_first_exception)
      if (!exception_) exception_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (exception_) std::rethrow_exception(exception_);
  }

 private:
  std::exception_ptr exception_;
};
}  // namespace detail

template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, F&& f) {
  if (end <= begin) return;
  const int64_t pieces = std::min<int64_t>(
      num_threads(), (end - begin + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1));
  if (pieces <= 1 || detail::in_parallel_region()) return f(begin, end);
  detail::FirstException first;
#pragma omp parallel for num_threads(static_cast <int>(pieces)) schedule(static, 1)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    first.run([&] {
      const int64_t from = begin + (end - begin) * piece / pieces;
      const int64_t to = begin + (end - begin) * (piece + 1) / pieces;
      if (from < to) f(from, to);
    });
  }
  first.rethrow();
}

template <typename F>
void parallel_for_each(int64_t begin, int64_t end, F&& f) {
  if (end - begin <= 1 || num_threads() == 1 || detail::in_parallel_region()) {
    for (int64_t i = begin; i < end; ++i) f(i);
    return;
  }
  detail::FirstException first;
#pragma omp parallel for num_threads(num_threads()) schedule(dynamic, 1)
  for (int64_t i = begin; i < end; ++i) first.run([&] { f(i); });
  first.rethrow();
}

}  // namespace fovea
