// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ranks that each have a card of their own, whose memory NCCL moves over NVLink or the network. The
// library is loaded with the first group. Built where the build has nvcc and <nccl.h>.

#include "distributed/communicator.h"

namespace fovea::distributed {

// A group of the same ranks as `job` (threads or processes), for tensors on `device`, which no
// other rank uses. Collective.
//
// Messages go on a stream of their own, behind the work that is queued on the device's compute
// stream when they start, and beside what is queued later. A call is over when the host has seen
// that its messages have arrived: an asynchronous one is waited for by the communicator's thread.
// NCCL matches messages in the order of calls, which must be one on all ranks, send and receive
// included.
Communicator nccl_group(const Communicator& job, Device device);

}  // namespace fovea::distributed
