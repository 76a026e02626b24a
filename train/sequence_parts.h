// SPDX-License-Identifier: Apache-2.0
#pragma once
// The parts of sequences that ranks of one data index train on: all read the same samples, and each
// takes its tokens of them.

#include <map>
#include <memory>

#include "data/source.h"
#include "distributed/context_part.h"
#include "train/model.h"

namespace fovea::train {

// The mesh of a job; data 0 is what ring and ulysses leave.
distributed::MeshSizes mesh_sizes(const MeshOptions& options, int ranks);

class SequenceParts {
 public:
  SequenceParts(const distributed::Mesh& mesh, const MeshOptions& options)
      : mesh_(mesh), options_(options) {}

  // Throws in one line where samples of `tokens` (0: no sequences) or the model cannot be cut.
  // Collective.
  void check(const Experiment& experiment, const Model& model, int64_t tokens);

  // A batch of whole samples as this rank trains on it. Targets tell of the next token: they are
  // cut as the inputs are. Collective where samples have a length that is new.
  struct Cut {
    data::Batch batch;
    const nn::SequencePart* part;  // null: samples are whole, and not in blocks
  };
  Cut cut(const data::Batch& whole);

 private:
  const distributed::ContextPart& part_of(int64_t tokens);

  const distributed::Mesh& mesh_;
  const MeshOptions& options_;
  std::map<int64_t, std::unique_ptr<distributed::ContextPart>> parts_;  // by tokens of a sample
};

}  // namespace fovea::train
