// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ranks as threads of this process: a message is one copy from memory to memory.

#include <functional>

#include "distributed/communicator.h"

namespace fovea::distributed {

// Runs f on `ranks` new host threads, each with its Communicator and an even share of the cores
// (ThreadShare); of one rank, on the caller's thread. When a rank throws, the waits of the others
// end, and its error is thrown here as "rank 2 of 4: ..." once all have returned. A rank that is
// still away five seconds after a failure is left behind, with its copy of f; the process should
// then end.
void run_ranks(int ranks, const std::function<void(const Communicator&)>& f);

}  // namespace fovea::distributed
