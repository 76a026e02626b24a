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

// Every operation with tensors of 1 KiB, 64 KiB, 1 MiB and 16 MiB on `device`, each for about
// `seconds`. All ranks call it and get the same rows.
std::vector<CommRow> bench_comm(const distributed::Communicator& comm, Dtype dtype, double seconds,
                                Device device);

}  // namespace fovea::train
