// SPDX-License-Identifier: Apache-2.0
#include "train/run_folder.h"

#include <algorithm>
#include <ctime>

#include "core/io/file.h"

namespace fovea::train {
namespace {

std::string now() {
  const std::time_t time = std::time(nullptr);
  std::tm local{};
  localtime_r(&time, &local);
  char text[32];
  std::strftime(text, sizeof text, "%Y%m%d-%H%M%S", &local);
  return text;
}

}  // namespace

RunFolder RunFolder::create(const std::filesystem::path& runs, const std::string& name,
                            const std::string& resolved_config) {
  std::error_code error;
  std::filesystem::create_directories(runs, error);
  FOVEA_CHECK(!error, "run: cannot make the folder ", runs.string(), ": ", error.message());
  const std::string base = name + "-" + now();
  for (int attempt = 1;; ++attempt) {
    const std::filesystem::path path =
        runs / (attempt == 1 ? base : base + "-" + std::to_string(attempt));
    // create_directory is the lock: of two runs that start at once only one makes it.
    if (!std::filesystem::create_directory(path, error)) {
      FOVEA_CHECK(!error && attempt < 1000, "run: cannot make the folder ", path.string(), ": ",
                  error ? error.message() : "too many runs of this second");
      continue;
    }
    try {
      std::filesystem::create_directory(path / "checkpoints", error);
      FOVEA_CHECK(!error, "run: cannot make the folder ", (path / "checkpoints").string(), ": ",
                  error.message());
      replace_file(path / "config.toml", resolved_config);
    } catch (const Error&) {
      std::filesystem::remove_all(path, error);  // all of it or nothing
      throw;
    }
    return RunFolder(path);
  }
}

RunFolder RunFolder::open(const std::filesystem::path& path) {
  FOVEA_CHECK(std::filesystem::is_directory(path), "run ", path.string(), ": no such folder");
  FOVEA_CHECK(std::filesystem::is_regular_file(path / "config.toml"), "run ", path.string(),
              ": has no config.toml, so it is no run folder");
  return RunFolder(path);
}

std::filesystem::path RunFolder::step(int64_t step) const {
  std::string digits = std::to_string(step);
  if (digits.size() < 8) digits.insert(0, 8 - digits.size(), '0');
  return path_ / "checkpoints" / ("step_" + digits + ".h5");
}

void RunFolder::prune(int64_t keep_last) const {
  const auto all = checkpoints();
  for (auto i = static_cast<size_t>(keep_last); i < all.size(); ++i) remove_checkpoint(all[i]);
  remove_stray_parts(path_ / "checkpoints");
}

std::vector<std::filesystem::path> RunFolder::checkpoints() const {
  std::vector<std::filesystem::path> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path_ / "checkpoints", error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step_") && name.find('.') == name.size() - 3 && name.ends_with(".h5"))
      found.push_back(entry.path());
  }
  FOVEA_CHECK(!error || error == std::errc::no_such_file_or_directory, "run: cannot look into ",
              (path_ / "checkpoints").string(), ": ", error.message());
  std::sort(found.begin(), found.end(), std::greater<>());
  return found;
}

Checkpoint RunFolder::latest(std::vector<std::string>& skipped) const {
  for (const auto& path : checkpoints()) {
    try {
      return read_checkpoint(path);
    } catch (const Error& error) {
      skipped.emplace_back(error.what());
    }
  }
  std::string why = skipped.empty() ? std::string("none was saved yet") : skipped.front();
  throw Error(concat("run ", path_.string(), ": has no checkpoint to go on from: ", why));
}

Checkpoint RunFolder::load(const std::string& which) const {
  if (which == "best" && std::filesystem::exists(best())) return read_checkpoint(best());
  if (which != "best" && which != "last") return read_checkpoint(which);
  std::vector<std::string> skipped;
  return latest(skipped);
}

}  // namespace fovea::train
