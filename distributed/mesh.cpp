// SPDX-License-Identifier: Apache-2.0
#include "distributed/mesh.h"

namespace fovea::distributed {

Mesh::Mesh(const Communicator& world, const MeshSizes& sizes) : sizes_(sizes) {
  const auto [D, R, U] = sizes;
  FOVEA_CHECK(D > 0 && R > 0 && U > 0, "mesh: expected sizes of at least 1, found data ", D,
              ", ring ", R, ", ulysses ", U);
  FOVEA_CHECK(int64_t{D} * R * U == world.size(), "mesh: data ", D, " x ring ", R, " x ulysses ", U,
              " is ", int64_t{D} * R * U, " ranks, but the job has ", world.size(),
              "; mesh.data, mesh.ring and mesh.ulysses divide it");
  const int rank = world.rank();
  place_ = {rank / (R * U), rank / U % R, rank % U};
  const auto [data, ring, ulysses] = place_;
  data_ = world.split(ring * U + ulysses, data);
  ring_ = world.split(data * U + ulysses, ring);
  ulysses_ = world.split(data * R + ring, ulysses);
  context_ = world.split(data, rank);
  all_ = world.split(0, rank);
}

}  // namespace fovea::distributed
