// SPDX-License-Identifier: Apache-2.0
#include "distributed/launch.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "core/parallel.h"
#include "distributed/local_card.h"
#include "distributed/mpi.h"
#include "distributed/threads.h"

namespace fovea::distributed {
namespace {

// Threads of a process that was not told how many: all that it is bound to, but no more than its
// share of the machine's cores.
std::optional<int> share_of_process() {
  if (std::getenv("OMP_NUM_THREADS") != nullptr) return {};
  for (const char* name : {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"}) {
    const char* text = std::getenv(name);
    if (const int ranks = text != nullptr ? std::atoi(text) : 0; ranks > 1) {
      const auto cores = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
      return std::min(num_threads(), std::max(1, cores / ranks));
    }
  }
  return {};
}

}  // namespace

void run_job(int ranks, const std::function<void(const Communicator&)>& f) {
  if (!started_by_mpi()) return run_ranks(std::max(ranks, 1), f);
  take_local_card();  // MPI may start CUDA
  std::optional<ThreadShare> share;
  if (const std::optional<int> threads = share_of_process()) share.emplace(*threads);
  const Communicator world = mpi_world();
  FOVEA_CHECK(ranks == 0 || ranks == world.size(), "ranks: ", ranks,
              " were asked for, but the job has ", world.size(), " processes");
  f(world);
}

}  // namespace fovea::distributed
