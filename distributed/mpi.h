// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ranks as processes of mpirun or srun. The MPI library is loaded when the first communicator is
// asked for; a program that is started alone needs none and starts as fast as without.

#include "distributed/communicator.h"

namespace fovea::distributed {

// This process was started by mpirun or srun as a rank of a job.
bool started_by_mpi();
// "rank 2 of 4", as mpirun or srun tell it, also before MPI runs; empty of a process they did not
// start.
std::string name_of_process();

// The group of all processes; starts MPI. Throws where the build (CMake option FOVEA_MPI) or the
// machine has none. MPI moves bytes while one of our threads is inside it: messages that nobody
// waits for have a thread of their own.
Communicator mpi_world();

// The last call of main(), after the last use of a communicator and after what went wrong has been
// said: with status 0 waits for the other ranks, else ends them all. Nothing where MPI was never
// started.
void end_mpi(int status) noexcept;

// Ranks often fail together, at a time limit or over one wrong file: a wait by rank in which the
// first of them can say why and have mpirun end the others, who then say nothing. From here on a
// SIGTERM ends the process at once.
void let_lower_ranks_speak() noexcept;

}  // namespace fovea::distributed
