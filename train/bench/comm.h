// SPDX-License-Identifier: Apache-2.0
#pragma once
// Communication of a job's ranks: how long, how fast, and whether the bytes are those of the
// formulas (distributed/communicator.h).

#include "distributed/communicator.h"

namespace fovea::train {

struct CommRow {
  distributed::Operation operation;
  int64_t payload_bytes = 0;  // of the whole tensor; 0 for barrier
  double median_ms = 0.0;     // of the slowest rank
  double gb_per_s = 0.0;      // sent by one rank, on average
  int64_t sent_bytes = 0;     // by all ranks, in one call
  int64_t formula_bytes = 0;
};

// Every operation with tensors of about so many bytes, each for about `seconds`, in `group`: a
// job's group for the tensors of a device (distributed/device_group.h). All ranks call it and get
// the same rows.
std::vector<CommRow> bench_comm(const distributed::Communicator& job,
                                const distributed::Communicator& group,
                                const std::vector<int64_t>& sizes, Dtype dtype, double seconds,
                                Device device);

}  // namespace fovea::train
