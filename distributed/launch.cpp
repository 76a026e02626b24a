// SPDX-License-Identifier: Apache-2.0
#include "distributed/launch.h"

#include <algorithm>

#include "distributed/mpi.h"
#include "distributed/threads.h"

namespace fovea::distributed {

void run_job(int ranks, const std::function<void(const Communicator&)>& f) {
  if (!started_by_mpi()) return run_ranks(std::max(ranks, 1), f);
  try {
    const Communicator world = mpi_world();
    FOVEA_CHECK(ranks == 0 || ranks == world.size(), "ranks: ", ranks,
                " were asked for, but the job has ", world.size(), " processes");
    f(world);
  } catch (...) {
    let_lower_ranks_speak();
    throw;
  }
}

}  // namespace fovea::distributed
