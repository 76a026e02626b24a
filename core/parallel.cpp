// SPDX-License-Identifier: Apache-2.0
#include "core/parallel.h"

#include <omp.h>

#include "core/error.h"

namespace fovea {
namespace {
int& thread_count() {
  static int count = omp_get_max_threads();
  return count;
}
thread_local bool serial = false;
thread_local int share = 0;  // of this host thread; 0: it has none of its own
}  // namespace

SerialScope::SerialScope() : before_(serial) { serial = true; }
SerialScope::~SerialScope() { serial = before_; }

ThreadShare::ThreadShare(int threads) : before_(share), omp_before_(omp_get_max_threads()) {
  FOVEA_CHECK(threads >= 1, "threads: expected a share of at least 1, found ", threads);
  share = threads;
  omp_set_num_threads(threads);  // of this host thread; oneDNN asks it
}
ThreadShare::~ThreadShare() {
  share = before_;
  omp_set_num_threads(omp_before_);
}

int num_threads() { return share > 0 ? share : thread_count(); }

void set_num_threads(int threads) {
  FOVEA_CHECK(threads >= 1, "threads: expected at least 1, found ", threads);
  thread_count() = threads;
  omp_set_num_threads(threads);
}

bool detail::in_parallel_region() { return serial || omp_in_parallel() != 0; }

}  // namespace fovea
