// SPDX-License-Identifier: Apache-2.0
#pragma once
// How a program becomes ranks.

#include <functional>

#include "distributed/communicator.h"

namespace fovea::distributed {

// Runs f on every rank of the job: this process is one where mpirun or srun started it (`ranks`
// must then be 0 or their number), with its share of the machine's cores unless OMP_NUM_THREADS
// says more and with a card of its own (local_card.h); else `ranks` threads are (0: one). Throws
// what a rank threw; main() says it, after let_lower_ranks_speak(), and ends with end_mpi(status).
void run_job(int ranks, const std::function<void(const Communicator&)>& f);

}  // namespace fovea::distributed
