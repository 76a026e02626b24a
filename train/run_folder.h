// SPDX-License-Identifier: Apache-2.0
#pragma once
// runs/<name>-<time>/: config.toml (resolved), metrics.jsonl, events.out.tfevents.*,
// checkpoints/step_<n>.h5 and best.h5 (with their parts: train/checkpoint.h), sample.txt,
// report.html.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "train/checkpoint.h"

namespace fovea::train {

class RunFolder {
 public:
  // Makes <runs>/<name>-<YYYYmmdd-HHMMSS>[-n] and writes config.toml. Throws when the folder cannot
  // be made.
  static RunFolder create(const std::filesystem::path& runs, const std::string& name,
                          const std::string& resolved_config);
  // An existing one; throws naming what is missing.
  static RunFolder open(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config() const { return path_ / "config.toml"; }
  std::filesystem::path metrics() const { return path_ / "metrics.jsonl"; }
  std::filesystem::path sample() const { return path_ / "sample.txt"; }
  std::filesystem::path report() const { return path_ / "report.html"; }

  // Where the checkpoint of a step, and the best one, are written.
  std::filesystem::path step(int64_t step) const;
  std::filesystem::path best() const { return path_ / "checkpoints" / "best.h5"; }
  // Removes all but the newest `keep_last`, and parts of saves that never ended.
  void prune(int64_t keep_last) const;
  // Newest first.
  std::vector<std::filesystem::path> checkpoints() const;
  // The newest one that can be read; each one that cannot is told about in `skipped`. Throws when
  // there is none.
  Checkpoint latest(std::vector<std::string>& skipped) const;
  // "best" (or, without one, the latest), "last", or a path.
  Checkpoint load(const std::string& which) const;

 private:
  explicit RunFolder(std::filesystem::path path) : path_(std::move(path)) {}
  std::filesystem::path path_;
};

}  // namespace fovea::train
