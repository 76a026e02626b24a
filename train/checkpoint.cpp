// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint.h"

#include "core/io/hdf5.h"

namespace fovea::train {
namespace {
constexpr const char* kFormat = "fovea checkpoint 1";
constexpr const char* kAttributes[] = {"config", "step", "samples", "seconds", "best"};
}  // namespace

const std::string& Checkpoint::attribute(const std::string& name) const {
  const auto found = attributes.find(name);
  FOVEA_CHECK(found != attributes.end(), "checkpoint: attribute ", name, " is missing");
  return found->second;
}

void Checkpoint::restore(const std::string& name, const Tensor& target) const {
  for (const auto& [known, tensor] : tensors) {
    if (known != name) continue;
    FOVEA_CHECK(tensor.shape() == target.shape() && tensor.dtype() == target.dtype(), "checkpoint: ", name, " is ", tensor.dtype(), ' ',
                tensor.shape(), " but the model needs ", target.dtype(), ' ', target.shape());
    target.copy_(tensor);
    return;
  }
  throw Error(concat("checkpoint: tensor ", name, " is missing; was it written by another model?"));
}

void write_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint) {
  Hdf5Writer writer;
  for (const auto& [name, tensor] : checkpoint.tensors) writer.write(name, tensor);
  writer.attribute("/", "format", kFormat);
  for (const auto& [name, value] : checkpoint.attributes) writer.attribute("/", name, value);
  writer.save(path);
}

Checkpoint read_checkpoint(const std::filesystem::path& path) {
  const Hdf5Reader reader(path);
  FOVEA_CHECK(reader.attribute("/", "format") == kFormat, "checkpoint ", path.string(), ": is an HDF5 file, but no checkpoint of this program");
  Checkpoint checkpoint;
  for (const std::string& name : reader.members("/")) checkpoint.tensors.emplace_back(name, reader.read(name));
  for (const char* name : kAttributes) {
    if (auto value = reader.attribute("/", name)) checkpoint.attributes[name] = *value;
  }
  return checkpoint;
}

}  // namespace fovea::train
