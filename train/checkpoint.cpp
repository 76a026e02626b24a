// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <memory>
#include <set>

#include "core/io/hdf5.h"

namespace fovea::train {
namespace {
constexpr const char* kFormat = "fovea checkpoint 1";
constexpr const char* kPartFormat = "fovea checkpoint part 1";
constexpr const char* kAttributes[] = {"config",  "optimizer", "step",  "samples",
                                       "seconds", "best",      "parts", "save"};
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

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> all;
  for (const auto& [name, _] : tensors) all.push_back(name);
  std::set<std::string> seen;
  for (const Part& part : parts)
    if (seen.insert(part.name).second) all.push_back(part.name);
  return all;
}

namespace {

const Tensor* whole_tensor(const Checkpoint& checkpoint, const std::string& name) {
  for (const auto& [known, tensor] : checkpoint.tensors)
    if (known == name) return &tensor;
  return nullptr;
}

[[noreturn]] void missing(const Checkpoint& checkpoint, const std::string& name) {
  throw Error(concat("checkpoint ", checkpoint.source, ": tensor ", name,
                     " is missing; was it written by another model or optimizer?"));
}

}  // namespace

Tensor Checkpoint::tensor(const std::string& name) const {
  if (const Tensor* whole = whole_tensor(*this, name)) return *whole;
  for (const Part& part : parts) {
    if (part.name != name) continue;
    const Tensor whole = Tensor::empty(part.whole);
    restore(name, whole);
    return whole;
  }
  missing(*this, name);
}

void Checkpoint::restore(const std::string& name, const Tensor& target) const {
  restore(name, target, target.shape(), 0);
}

void Checkpoint::restore(const std::string& name, const Tensor& target, const Shape& whole,
                         int64_t from) const {
  const auto check = [&](const Shape& shape, Dtype dtype) {
    FOVEA_CHECK(shape == whole && dtype == target.dtype(), "checkpoint ", source, ": ", name,
                " is ", dtype, ' ', shape, " but the model needs ", target.dtype(), ' ', whole);
  };
  const int64_t n = target.numel(), to = from + n;
  const Tensor flat = target.view({n});
  if (const Tensor* all = whole_tensor(*this, name)) {
    check(all->shape(), all->dtype());
    flat.copy_(all->contiguous().view({all->numel()}).slice(0, from, to));
    return;
  }
  bool known = false;
  int64_t found = 0;
  for (const Part& part : parts) {
    if (part.name != name) continue;
    known = true;
    check(part.whole, target.dtype());
    const int64_t begin = std::max(from, part.from), end = std::min(to, part.from + part.n);
    if (begin >= end) continue;
    const Tensor values = part.read();
    check(part.whole, values.dtype());
    flat.slice(0, begin - from, end - from)
        .copy_(values.slice(0, begin - part.from, end - part.from));
    found += end - begin;
  }
  if (!known) missing(*this, name);
  FOVEA_CHECK(found == n, "checkpoint ", source, ": its parts have ", found, " of elements ", from,
              " to ", to, " of ", name);
}

// ---- files --------------------------------------------------------------------------------------

namespace {

bool is_part_of(const std::filesystem::path& file, const std::filesystem::path& checkpoint) {
  const std::string name = file.filename().string(), stem = checkpoint.stem().string();
  return name.starts_with(stem + '.') && name.ends_with(".h5") &&
         name.find("-of-") != std::string::npos;
}

// Parts beside a checkpoint, but those of the save.
void remove_parts(const std::filesystem::path& path, const std::string& save) {
  for (const auto& entry : std::filesystem::directory_iterator(path.parent_path()))
    if (is_part_of(entry.path(), path) &&
        (save.empty() || !is_part_of(entry.path(), path.stem().string() + '.' + save + ".h5")))
      std::filesystem::remove(entry.path());
}

std::string text(const Shape& shape) {
  std::string sizes;
  for (const int64_t size : shape) sizes += (sizes.empty() ? "" : " ") + std::to_string(size);
  return sizes;
}

// A whole number in an attribute of a part's dataset; `rest` is what follows it.
int64_t number_at(std::string_view& rest, const std::string& where) {
  int64_t value = 0;
  const auto [end, code] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
  FOVEA_CHECK(code == std::errc{} && value >= 0, where, ": its place in the tensor is damaged");
  rest.remove_prefix(static_cast<size_t>(end - rest.data()));
  while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
  return value;
}

void read_part(const std::filesystem::path& path, const std::string& save, Checkpoint& checkpoint) {
  const auto reader = std::make_shared<const Hdf5Reader>(path, Seal::required);
  FOVEA_CHECK(
      reader->attribute("/", "format") == kPartFormat && reader->attribute("/", "save") == save,
      "checkpoint ", path.string(), ": is no part of the save ", save);
  for (const std::string& name : reader->members("/")) {
    const std::string where = concat("checkpoint ", path.string(), ": ", name);
    const auto read_text = [&](const char* attribute) {
      const auto value = reader->attribute(name, attribute);
      FOVEA_CHECK(value, where, ": attribute ", attribute, " is missing");
      return *value;
    };
    Checkpoint::Part part;
    part.name = name;
    part.n = reader->shape(name).numel();
    const std::string whole = read_text("whole"), from = read_text("from");
    for (std::string_view rest = whole; !rest.empty();)
      part.whole.push_back(number_at(rest, where));
    std::string_view rest = from;
    part.from = number_at(rest, where);
    FOVEA_CHECK(part.n <= part.whole.numel() && part.from <= part.whole.numel() - part.n, where,
                ": elements ", part.from, " to ", part.from + part.n, " of ", part.whole);
    part.read = [reader, name] { return reader->read(name); };
    checkpoint.parts.push_back(std::move(part));
  }
}

}  // namespace

std::filesystem::path part_path(const std::filesystem::path& path, const std::string& save,
                                int rank, int ranks) {
  return path.parent_path() /
         concat(path.stem().string(), '.', save, '.', rank + 1, "-of-", ranks, ".h5");
}

void write_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint) {
  Hdf5Writer writer;
  for (const auto& [name, tensor] : checkpoint.tensors) writer.write(name, tensor);
  writer.attribute("/", "format", kFormat);
  for (const auto& [name, value] : checkpoint.attributes) writer.attribute("/", name, value);
  writer.save(path);
  const auto save = checkpoint.attributes.find("save");
  remove_parts(path, save == checkpoint.attributes.end() ? "" : save->second);
}

void write_part(const std::filesystem::path& path, const Checkpoint& checkpoint, int rank,
                int ranks) {
  const std::string& save = checkpoint.attribute("save");
  Hdf5Writer writer;
  for (const Checkpoint::Part& part : checkpoint.parts) {
    writer.write(part.name, part.read());
    writer.attribute(part.name, "whole", text(part.whole));
    writer.attribute(part.name, "from", std::to_string(part.from));
  }
  writer.attribute("/", "format", kPartFormat);
  writer.attribute("/", "save", save);
  writer.save(part_path(path, save, rank, ranks));
}

Checkpoint read_checkpoint(const std::filesystem::path& path) {
  const Hdf5Reader reader(path, Seal::required);
  const auto format = reader.attribute("/", "format");
  FOVEA_CHECK(
      format != kPartFormat, "checkpoint ", path.string(),
      ": is one rank's part of a checkpoint; the file without a number holds them together");
  FOVEA_CHECK(format == kFormat, "checkpoint ", path.string(),
              ": is an HDF5 file, but no checkpoint of this program");
  Checkpoint checkpoint;
  checkpoint.source = path.string();
  for (const std::string& name : reader.members("/"))
    checkpoint.tensors.emplace_back(name, reader.read(name));
  for (const char* name : kAttributes) {
    if (auto value = reader.attribute("/", name)) checkpoint.attributes[name] = *value;
  }
  if (!checkpoint.attributes.contains("parts")) return checkpoint;
  const auto ranks = static_cast<int>(checkpoint.integer("parts"));
  for (int rank = 0; rank < ranks; ++rank)
    read_part(part_path(path, checkpoint.attribute("save"), rank, ranks),
              checkpoint.attribute("save"), checkpoint);
  return checkpoint;
}

void remove_checkpoint(const std::filesystem::path& path) {
  std::filesystem::remove(path);
  remove_parts(path, "");
}

void remove_stray_parts(const std::filesystem::path& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const std::filesystem::path checkpoint = folder / (name.substr(0, name.find('.')) + ".h5");
    if (is_part_of(entry.path(), checkpoint) && !std::filesystem::exists(checkpoint))
      std::filesystem::remove(entry.path());
  }
}

}  // namespace fovea::train
