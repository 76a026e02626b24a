// SPDX-License-Identifier: Apache-2.0
#pragma once
// A job's ranks as its tensors see them: a group that exchanges tensors of a device where they lie.
// What the host holds (counts, hashes, checkpoints) goes by the job itself.

#include "distributed/communicator.h"

namespace fovea::distributed {

// A group of the job's ranks for tensors of `device`:
//
//   cpu           the job itself
//   interpreted   the job's messages, from and to the device's memory (Communicator::on)
//   cuda          NCCL, where each rank has a card of its own; where any two share one, which NCCL
//                 refuses, the job itself: tensors go through the host, and rank 0 says so once
//
// Of one rank: the job itself. All ranks agree on which it is, and it is an error on all where one
// lacks NCCL. Collective.
Communicator device_group(const Communicator& job, Device device);

// The library's version, or why there is none.
struct Nccl {
  std::string version, why;
};
Nccl find_nccl();

// A rank's card, as others see it.
struct RankCard {
  std::string host;     // its name
  std::string machine;  // tells machines of one name apart
  std::string bus;      // the card's place there
  Nccl nccl;
};
// Why the ranks' tensors go through the host, as one line; empty: each has a card of its own.
std::string shared_card(const std::vector<RankCard>& ranks);
// Throws, naming a rank, where one lacks NCCL or has another version.
void check_nccl(const std::vector<RankCard>& ranks);

}  // namespace fovea::distributed
