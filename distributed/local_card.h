// SPDX-License-Identifier: Apache-2.0
#pragma once
// Which card a process of mpirun or srun takes: one of its node, chosen before CUDA starts by
// narrowing CUDA_VISIBLE_DEVICES to it. From then on the process knows one card, cuda:0.

#include <functional>
#include <map>
#include <optional>
#include <string>

namespace fovea::distributed {

using Environment = std::map<std::string, std::string>;
Environment environment_of_process();

// The process's number among those of the job on its node, from the first variable there is of:
// OMPI_COMM_WORLD_LOCAL_RANK (Open MPI), MPI_LOCALRANKID (MPICH, Intel MPI),
// MV2_COMM_WORLD_LOCAL_RANK, PMI_LOCAL_RANK, PALS_LOCAL_RANKID, SLURM_LOCALID. Absent where there
// is none; throws where it is no number.
std::optional<int> local_rank(const Environment& environment);

// What CUDA_VISIBLE_DEVICES becomes for local rank r:
//
//   not set              card r mod n of the node's n = cards()
//   a list of m > 1      its entry r mod m: that of the user or the scheduler
//   one entry, or none   stays: the scheduler has given the process its card, or it shall have none
//
// Absent: it stays as it is. Throws for a list with an empty entry or the same one twice, and where
// there are several cards and no local rank.
std::optional<std::string> visible_card(const Environment& environment,
                                        const std::function<int()>& cards);

// Does so for this process, which a launcher has started as a rank, before its first CUDA call.
// What is wrong is kept for those who want a card.
void take_local_card();
// Throws what is wrong with the choice of a card.
void check_local_card();

// Cards of this node, CUDA_VISIBLE_DEVICES aside, without starting CUDA; 0 where there is no
// driver, or the build has no CUDA.
int cards_of_node();

}  // namespace fovea::distributed
