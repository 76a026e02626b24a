// SPDX-License-Identifier: Apache-2.0
#include "train/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/allocator.h"

namespace fovea::train {
namespace {

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

size_t terminal_width() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 100;
}

// `cells` characters wide, filled to `share` in eighths.
std::string bar(double share, size_t cells) {
  static constexpr const char* kEighths[] = {" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"};
  std::string text;
  for (size_t i = 0; i < cells; ++i) {
    const double filled =
        std::clamp(share * static_cast<double>(cells) - static_cast<double>(i), 0.0, 1.0);
    text += kEighths[static_cast<size_t>(filled * 8.0)];
  }
  return text;
}

}  // namespace

std::string short_count(double value) {
  if (value >= 1e9) return format("%.2fG", value / 1e9);
  if (value >= 1e6) return format("%.2fM", value / 1e6);
  if (value >= 1e4) return format("%.1fk", value / 1e3);
  return format(value < 100 && value != std::floor(value) ? "%.1f" : "%.0f", value);
}

std::string short_time(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  if (whole >= 3600)
    return std::to_string(whole / 3600) + "h " + std::to_string(whole / 60 % 60) + "m";
  if (whole >= 60) return std::to_string(whole / 60) + "m " + std::to_string(whole % 60) + "s";
  return std::to_string(whole) + "s";
}

void Progress::update(const ProgressState& s) {
  const auto now = std::chrono::steady_clock::now();
  const bool last = s.step == s.steps;
  if (!last &&
      now - last_ < (terminal_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(10000)))
    return;
  last_ = now;
  const double share =
      static_cast<double>(s.step) / static_cast<double>(std::max<int64_t>(1, s.steps));
  std::string text = " step " + std::to_string(s.step) + "/" + std::to_string(s.steps) + "  loss " +
                     format("%.4f", s.loss) + "  lr " + format("%.2e", s.lr) + "  " +
                     short_count(s.units_per_s) + " " + s.unit + "/s";
  if (s.mfu >= 0.0) text += "  " + format("%.0f", 100.0 * s.mfu) + " % of peak";
  text += "  " + short_bytes(s.bytes) + (last ? "" : "  " + short_time(s.eta_s) + " left");
  if (!terminal_) {
    out_ << text.substr(1) << std::endl;
    return;
  }
  const size_t width = terminal_width() - 1;
  const size_t cells = text.size() + 4 < width ? std::min<size_t>(30, width - text.size() - 2) : 0;
  out_ << '\r' << (cells > 0 ? bar(share, cells) : "") << text.substr(0, width - cells) << "\033[K"
       << std::flush;
  shown_ = true;
}

void Progress::message(const std::string& line) {
  if (terminal_ && shown_) out_ << "\r\033[K";
  out_ << line << std::endl;
}

void Progress::finish() {
  if (terminal_ && shown_) out_ << std::endl;
  shown_ = false;
}

}  // namespace fovea::train
