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

  // Throws in one line where samples of `context` tokens (any: images) or the model cannot be cut.
  // Collective.
  void check(const Model& model, int64_t context);

  // A batch of whole samples as this rank trains on it; images and documents stay whole. Targets
  // tell of the next token: they are cut as the inputs are. Collective where a layout is new: that
  // of a length, and, dispatched, of a batch's documents. The part lives until the next cut.
  struct Cut {
    data::Batch batch;
    const nn::SequencePart* part;  // null: samples are whole
  };
  Cut cut(const data::Batch& whole, const Model& model);

 private:
  const distributed::ContextPart& part_of(const data::Batch& whole, const Model& model);
  std::unique_ptr<distributed::ContextPart> make_part(int64_t batch, int64_t tokens,
                                                      const Tensor& documents,
                                                      const Model& model) const;
  bool dispatched() const { return options_.order == "dispatched"; }
  int64_t chunk(int64_t tokens) const;
  void check_keys() const;
  std::string refuses_chunks(int64_t tokens) const;

  const distributed::Mesh& mesh_;
  const MeshOptions& options_;
  std::map<int64_t, std::unique_ptr<distributed::ContextPart>> parts_;  // by tokens of a sample
  std::unique_ptr<distributed::ContextPart> of_documents_;              // of the last batch
};

}  // namespace fovea::train
