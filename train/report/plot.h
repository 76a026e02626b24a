// SPDX-License-Identifier: Apache-2.0
#pragma once
// Line plots: one description, drawn as SVG (for the page) or PNG (for elsewhere).

#include <string>
#include <utility>
#include <vector>

namespace fovea::train {

struct Line {
  std::string label;
  int color = 0;                                  // index of the palette
  std::vector<std::pair<double, double>> points;  // non-finite ones break the line
  bool faint = false;                             // raw values behind a smoothed line
  bool markers = false;
};

struct Plot {
  std::string title, x_label, y_label;
  std::vector<Line> lines;
};

// What the axes cover, with room around the data.
struct Frame {
  double x0, x1, y0, y1;
};
Frame frame_of(const Plot& plot);

// Ticks at multiples of 1, 2 or 5 times a power of ten, about `count` of them, inside [low, high].
std::vector<double> ticks(double low, double high, int count);
// "12k", "0.0015"
std::string tick_label(double value);

// A fragment of HTML; colours come from the CSS variables --c0 ... --c5, --grid and --text of the
// page.
std::string to_svg(const Plot& plot);
// A file of its own.
std::string to_standalone_svg(const Plot& plot);
// PNG bytes, 1200 x 720.
std::string to_png(const Plot& plot);

inline constexpr const char* kPalette[] = {"#2563eb", "#dc2626", "#059669",
                                           "#d97706", "#7c3aed", "#0891b2"};
inline constexpr int kColors = 6;

std::string escape_html(const std::string& text);

}  // namespace fovea::train
