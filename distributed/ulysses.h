// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ulysses (2309.14509): context parallelism of whatever treats heads alike. One all-to-all turns
// shards of the sequence with all heads into the whole sequence with a share of the heads, on which
// any operation runs as on one rank; another turns its result back. Any shards, also without
// tokens.
//
//   [B, n, H, D] --heads_to_sequence--> [B, N, H/U, D] --sequence_to_heads--> [B, n, H, D]
//
// Rank u of U has heads [u H/U, (u+1) H/U); the parts sent are [U, B, H/U, n, D].
// Grouped queries: of G key heads U/G ranks share one where G < U (each is sent to all of them, its
// gradients are summed), so that rank u has the key heads of its query heads.
//
// Bytes sent by one rank, h = max(1, H/U): heads_to_sequence (U-1) B h n D e, sequence_to_heads
// B h (N - n) D e. With equal shards q, k, v and the output take (U-1)/U n B D e (2 H + 2 max(G,
// U)) forward, and the same backward.

#include "autograd/function.h"
#include "distributed/shards.h"

namespace fovea::distributed {

// How many heads there may be.
enum class Heads : uint8_t {
  divided,  // a multiple of U
  shared    // a multiple or a divisor of U: of keys and values
};

// x [B, n, H, D] -> [B, N, H/U, D] (one head where H < U), in memory [B, H/U, N, D].
// Differentiable.
Variable heads_to_sequence(const Variable& x, const Shards& shards, const Communicator& comm,
                           Heads heads = Heads::divided);
// x [B, N, H/U, D] -> [B, n, H, D]. Differentiable.
Variable sequence_to_heads(const Variable& x, const Shards& shards, const Communicator& comm);

}  // namespace fovea::distributed
