// SPDX-License-Identifier: Apache-2.0
#pragma once
// The live line of a run: step, loss, rate, speed, share of the machine's peak, time left, memory.

#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>

namespace fovea::train {

struct ProgressState {
  int64_t step = 0, steps = 0;
  double loss = 0.0, lr = 0.0;
  double units_per_s = 0.0;
  std::string unit = "tok";
  double mfu = -1.0;  // of the measured peak; negative: unknown
  double eta_s = 0.0;
  int64_t bytes = 0;
};

// "26.8k", "1m 24s"
std::string short_count(double value);
std::string short_time(double seconds);

class Progress {
 public:
  // On a terminal one line is redrawn, at most ten times a second; elsewhere a line appears every
  // ten seconds.
  Progress(std::ostream& out, bool terminal) : out_(out), terminal_(terminal) {}
  ~Progress() { finish(); }
  void update(const ProgressState& state);
  // A line of its own, above the live one.
  void message(const std::string& line);
  void finish();

 private:
  std::ostream& out_;
  bool terminal_, shown_ = false;
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace fovea::train
