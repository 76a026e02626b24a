// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tensors and text attributes in HDF5 files (through the C API, whose errors become one line each).
// bf16 is stored as uint16 with attribute dtype = "bf16"; every dataset is chunked by rows with a
// Fletcher-32 checksum, and the file ends in a checksum of the whole.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace fovea {

// Whether a file must end in the checksum that Hdf5Writer appends. Required: not a byte of a
// damaged file reaches the HDF5 library, which does not survive all of them. Optional: files of
// other programs are read too, by a process of their own, so that damage the library does not
// survive is an error here and not a crash.
enum class Seal { optional, required };

class Hdf5Source;

class Hdf5Reader {
 public:
  // Throws naming the file when it is missing, no HDF5 file, cut short, or differs from its
  // checksum.
  explicit Hdf5Reader(const std::filesystem::path& path, Seal seal = Seal::optional);
  ~Hdf5Reader();
  Hdf5Reader(const Hdf5Reader&) = delete;
  Hdf5Reader& operator=(const Hdf5Reader&) = delete;

  const std::string& path() const { return path_; }
  bool has(const std::string& name) const;
  // Names of the members of a group, sorted ("/" is the root).
  std::vector<std::string> members(const std::string& group) const;
  // The shape of a dataset, unread.
  Shape shape(const std::string& name) const;
  Dtype dtype(const std::string& name) const;
  // A whole dataset. Throws naming file and dataset for a type that no Dtype holds and for a failed
  // checksum.
  Tensor read(const std::string& name) const;
  // Rows [begin, end) of axis 0.
  Tensor read_rows(const std::string& name, int64_t begin, int64_t end) const;
  // A text (or integer, as text) attribute of an object; absent when there is none.
  std::optional<std::string> attribute(const std::string& object, const std::string& name) const;

 private:
  std::string path_;
  std::unique_ptr<Hdf5Source> source_;
};

// Builds a file in memory; save() puts it in place of `path` at once (core/io/file.h).
class Hdf5Writer {
 public:
  Hdf5Writer();
  ~Hdf5Writer();
  Hdf5Writer(const Hdf5Writer&) = delete;
  Hdf5Writer& operator=(const Hdf5Writer&) = delete;

  // "group/sub/name": groups are made as needed. Throws when the name is taken.
  void write(const std::string& name, const Tensor& tensor);
  void attribute(const std::string& object, const std::string& name, const std::string& value);
  void save(const std::filesystem::path& path);

 private:
  int64_t file_ = -1;
};

}  // namespace fovea
