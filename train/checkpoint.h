// SPDX-License-Identifier: Apache-2.0
#pragma once
// A checkpoint: named tensors and text attributes in one HDF5 file, replaced at once, with
// checksums (core/io/hdf5.h). Where ranks hold parts of the state (ZeRO-1), each writes a file of
// its own beside it, all at once, and nobody collects them:
//
//   step_00000200.h5                       weights and attributes: `parts` = 4, `save` = 5e3a91c2
//   step_00000200.5e3a91c2.1-of-4.h5 ...   datasets [n] with attributes `whole`, the tensor's
//   shape,
//                                          and `from`: elements [from, from + n) of it, row-major
//
// The first file is written last and names the save that its parts are of: until then the
// checkpoint before it is whole.

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace fovea::train {

struct Checkpoint {
  // Elements [from, from + n) of a tensor of shape `whole`.
  struct Part {
    std::string name;
    Shape whole;
    int64_t from = 0, n = 0;
    std::function<Tensor()> read;  // [n], from memory or a file
  };

  std::string source = "in memory";  // the file it was read from, for errors
  std::vector<std::pair<std::string, Tensor>>
      tensors;  // "model.blocks.0.mlp.up.weight", "optimizer.m....", "ema...."
  std::vector<Part> parts;
  std::map<std::string, std::string> attributes;

  // Throws naming the attribute when it is missing.
  const std::string& attribute(const std::string& name) const;
  // The same as a number; throws when it is none.
  int64_t integer(const std::string& name) const;
  double number(const std::string& name) const;
  // Names of tensors, and of those in parts.
  std::vector<std::string> names() const;
  // A whole one, its parts joined. Throws naming the tensor when it, or some of it, is missing.
  Tensor tensor(const std::string& name) const;
  // Copies a tensor into `target`; throws when it is missing or has another shape or dtype.
  void restore(const std::string& name, const Tensor& target) const;
  // Copies elements [from, from + numel of target) of a tensor of shape `whole`; only the parts
  // that have them are read.
  void restore(const std::string& name, const Tensor& target, const Shape& whole,
               int64_t from) const;
};

// The file of rank `rank` of `ranks`, of a save.
std::filesystem::path part_path(const std::filesystem::path& path, const std::string& save,
                                int rank, int ranks);
// Both throw, and leave a file that was there as it was, when the disk is full or the folder cannot
// be written. Tensors and attributes go into the checkpoint's file, with which its parts of earlier
// saves go away; this rank's parts into one of theirs, all before it.
void write_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint);
void write_part(const std::filesystem::path& path, const Checkpoint& checkpoint, int rank,
                int ranks);
// With all parts. Throws naming the file when it is missing, cut short, damaged, no checkpoint, or
// a part of another save.
Checkpoint read_checkpoint(const std::filesystem::path& path);
// With its parts.
void remove_checkpoint(const std::filesystem::path& path);
// Parts in a folder whose checkpoint was never written.
void remove_stray_parts(const std::filesystem::path& folder);

}  // namespace fovea::train
