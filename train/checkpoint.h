// SPDX-License-Identifier: Apache-2.0
#pragma once
// A checkpoint: named tensors and text attributes in one HDF5 file, replaced at once, with
// checksums (core/io/hdf5.h).

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace fovea::train {

struct Checkpoint {
  std::string source = "in memory";  // the file it was read from, for errors
  std::vector<std::pair<std::string, Tensor>>
      tensors;  // "model.blocks.0.mlp.up.weight", "optimizer.m....", "ema...."
  std::map<std::string, std::string> attributes;

  // Throws naming the attribute when it is missing.
  const std::string& attribute(const std::string& name) const;
  // The same as a number; throws when it is none.
  int64_t integer(const std::string& name) const;
  double number(const std::string& name) const;
  // Throws naming the tensor when it is missing.
  const Tensor& tensor(const std::string& name) const;
  // Copies a tensor into `target`; throws when it is missing or has another shape or dtype.
  void restore(const std::string& name, const Tensor& target) const;
};

// Throws, and leaves a file that was there as it was, when the disk is full or the folder cannot be
// written.
void write_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint);
// Throws naming the file when it is missing, cut short, damaged, or no checkpoint.
Checkpoint read_checkpoint(const std::filesystem::path& path);

}  // namespace fovea::train
