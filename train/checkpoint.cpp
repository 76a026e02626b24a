// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint.h"

#include <charconv>

#include "core/io/hdf5.h"

namespace fovea::train {
namespace {
constexpr const char* kFormat = "fovea checkpoint 1";
constexpr const char* kAttributes[] = {"config", "optimizer", "step", "samples", "seconds", "best"};
}  // namespace

const std::string& Checkpoint::attribute(const std::string& name) const {
  const auto found = attributes.find(name);
  FOVEA_CHECK(found != attributes.end(), "checkpoint ", source, ": attribute ", name,
              " is missing");
  return found->second;
}

namespace {
template <typename T>
T parsed(const Checkpoint& checkpoint, const std::string& name) {
  const std::string& text = checkpoint.attribute(name);
  T value{};
  const auto [rest, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  FOVEA_CHECK(code == std::errc{} && rest == text.data() + text.size(), "checkpoint ",
              checkpoint.source, ": attribute ", name, " is \"", text, "\"; expected a number");
  return value;
}
}  // namespace

int64_t Checkpoint::integer(const std::string& name) const { return parsed<int64_t>(*this, name); }
double Checkpoint::number(const std::string& name) const { return parsed<double>(*this, name); }

const Tensor& Checkpoint::tensor(const std::string& name) const {
  for (const auto& [known, tensor] : tensors)
    if (known == name) return tensor;
  throw Error(concat("checkpoint ", source, ": tensor ", name,
                     " is missing; was it written by another model or optimizer?"));
}

void Checkpoint::restore(const std::string& name, const Tensor& target) const {
  const Tensor& found = tensor(name);
  FOVEA_CHECK(found.shape() == target.shape() && found.dtype() == target.dtype(), "checkpoint ",
              source, ": ", name, " is ", found.dtype(), ' ', found.shape(),
              " but the model needs ", target.dtype(), ' ', target.shape());
  target.copy_(found);
}

void write_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint) {
  Hdf5Writer writer;
  for (const auto& [name, tensor] : checkpoint.tensors) writer.write(name, tensor);
  writer.attribute("/", "format", kFormat);
  for (const auto& [name, value] : checkpoint.attributes) writer.attribute("/", name, value);
  writer.save(path);
}

Checkpoint read_checkpoint(const std::filesystem::path& path) {
  const Hdf5Reader reader(path, Seal::required);
  FOVEA_CHECK(reader.attribute("/", "format") == kFormat, "checkpoint ", path.string(),
              ": is an HDF5 file, but no checkpoint of this program");
  Checkpoint checkpoint;
  checkpoint.source = path.string();
  for (const std::string& name : reader.members("/"))
    checkpoint.tensors.emplace_back(name, reader.read(name));
  for (const char* name : kAttributes) {
    if (auto value = reader.attribute("/", name)) checkpoint.attributes[name] = *value;
  }
  return checkpoint;
}

}  // namespace fovea::train
