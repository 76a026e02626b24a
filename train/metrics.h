// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a run measured: metrics.jsonl (one JSON object a line, numbers with 17 significant digits so
// that equality can be tested, non-finite ones as strings) and TensorBoard events beside it.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace fovea::train {

struct Metrics {
  int64_t step = 0;
  int64_t tokens = 0;  // or images, seen so far
  double time_s = 0.0;
  std::string split;  // "train" | "val"
  std::vector<std::pair<std::string, double>> values;

  // NaN when there is no such value.
  double value(const std::string& name) const;
};

std::string to_json(const Metrics& metrics);

// Throws naming file and line for anything but such a line; a last line without its newline (a
// killed run) is left out.
std::vector<Metrics> read_metrics(const std::filesystem::path& path);

class MetricsWriter {
 public:
  // Appends to folder/metrics.jsonl after dropping lines of steps beyond `last_step` (written after
  // the checkpoint that a resumed run starts from), and opens a new event file.
  MetricsWriter(const std::filesystem::path& folder, int64_t last_step);
  ~MetricsWriter();
  // One write(2) a line. Throws when the disk is full.
  void write(const Metrics& metrics);

 private:
  std::filesystem::path path_;
  int file_ = -1;
  int events_ = -1;
};

}  // namespace fovea::train
