// SPDX-License-Identifier: Apache-2.0
#pragma once
// Where an Hdf5Reader's answers come from: the library in this process, or in another. Every
// function throws Error as Hdf5Reader says.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace fovea {

class Hdf5Source {
 public:
  Hdf5Source() = default;
  virtual ~Hdf5Source() = default;
  Hdf5Source(const Hdf5Source&) = delete;
  Hdf5Source& operator=(const Hdf5Source&) = delete;

  virtual bool has(const std::string& name) = 0;
  virtual std::vector<std::string> members(const std::string& group) = 0;
  virtual Shape shape(const std::string& name) = 0;
  virtual Dtype dtype(const std::string& name) = 0;
  // Rows [begin, end) of axis 0; without them, the whole dataset, a scalar too.
  struct Rows {
    int64_t begin, end;
  };
  virtual Tensor read(const std::string& name, std::optional<Rows> rows) = 0;
  virtual std::optional<std::string> attribute(const std::string& object,
                                               const std::string& name) = 0;
};

// Opens the file with the library.
std::unique_ptr<Hdf5Source> open_hdf5(const std::string& path);
// The same in a child process that lives as long as the source. Its death is an Error, and so is
// its silence for half a minute.
std::unique_ptr<Hdf5Source> open_hdf5_apart(const std::string& path);

}  // namespace fovea
