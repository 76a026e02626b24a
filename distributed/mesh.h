// SPDX-License-Identifier: Apache-2.0
#pragma once
// How the ranks of a job divide the work. Ranks of one `data` index hold parts of the same samples,
// cut along the sequence: over a ring of groups, and inside a group over heads (Ulysses).
//
//   rank = (data * R + ring) * U + ulysses
//
// so that Ulysses groups, which exchange most, are neighbours (one node).

#include "distributed/communicator.h"

namespace fovea::distributed {

struct MeshSizes {
  int data = 1, ring = 1, ulysses = 1;
  int ranks() const { return data * ring * ulysses; }
};

class Mesh {
 public:
  // Throws unless the sizes are positive and multiply to the number of ranks. Collective.
  Mesh(const Communicator& world, const MeshSizes& sizes);

  const MeshSizes& sizes() const { return sizes_; }
  // This rank's place on each axis.
  const MeshSizes& place() const { return place_; }

  // Groups of the ranks that differ from this one in the named axes alone; a rank's number in its
  // group is its place, and in `context` ring * U + ulysses. Each has its own order of calls and
  // its own counts.
  const Communicator& data() const { return data_; }
  const Communicator& ring() const { return ring_; }
  const Communicator& ulysses() const { return ulysses_; }
  const Communicator& context() const { return context_; }  // ring x ulysses
  // data x context: all ranks, over which weights are replicated and gradients summed.
  const Communicator& all() const { return all_; }

 private:
  MeshSizes sizes_, place_;
  Communicator data_, ring_, ulysses_, context_, all_;
};

}  // namespace fovea::distributed
