// SPDX-License-Identifier: Apache-2.0
#include "train/report/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <sstream>

namespace fovea::train {
namespace {

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

}  // namespace

std::string escape_html(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::vector<double> ticks(double low, double high, int count) {
  const double span = std::max(high - low, 1e-12), rough = span / count,
               power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = power;
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    step = factor * power;
    if (step >= rough) break;
  }
  std::vector<double> values;
  // Counted: where doubles are further apart than a step, the next tick would be this one again.
  const double first = std::ceil(low / step - 1e-9);
  for (int i = 0; i <= 2 * count && (first + i) * step <= high + 1e-9 * span; ++i)
    values.push_back((first + i) * step);
  return values;
}

std::string tick_label(double value) {
  const double size = std::abs(value);
  if (size >= 1e6) return format("%.4g", value / 1e6) + "M";
  if (size >= 1e4) return format("%.4g", value / 1e3) + "k";
  if (size > 0.0 && size < 1e-3) return format("%.1e", value);
  return format("%.5g", value);
}

Frame frame_of(const Plot& plot) {
  Frame f{1e300, -1e300, 1e300, -1e300};
  std::vector<double> tops;
  for (const Line& line : plot.lines) {
    for (const auto& [x, y] : line.points) {
      if (!std::isfinite(x) || !std::isfinite(y)) continue;
      f.x0 = std::min(f.x0, x);
      f.x1 = std::max(f.x1, x);
      f.y0 = std::min(f.y0, y);
      tops.push_back(y);
    }
  }
  if (tops.empty()) return {0.0, 1.0, 0.0, 1.0};
  // The first steps of a run may tower over all others: the top is the 99th percentile, with room.
  std::sort(tops.begin(), tops.end());
  f.y1 = tops[(tops.size() - 1) * 99 / 100];
  if (tops.back() < f.y1 + 0.5 * (f.y1 - f.y0)) f.y1 = tops.back();
  if (f.x1 <= f.x0) f.x1 = f.x0 + 1.0;
  if (f.y1 <= f.y0) f.y1 = f.y0 + std::max(1e-9, 0.1 * std::abs(f.y0));
  const double room = 0.05 * (f.y1 - f.y0);
  f.y0 -= room;
  f.y1 += room;
  return f;
}

std::string to_svg(const Plot& plot) {
  constexpr double width = 720, height = 320, left = 58, right = 14, top = 34, bottom = 40;
  const Frame f = frame_of(plot);
  const auto px = [&](double x) {
    return left + (x - f.x0) / (f.x1 - f.x0) * (width - left - right);
  };
  const auto py = [&](double y) {
    return height - bottom - (y - f.y0) / (f.y1 - f.y0) * (height - top - bottom);
  };
  std::ostringstream out;
  out << "<svg class=\"plot\" viewBox=\"0 0 " << width << ' ' << height
      << "\" role=\"img\" aria-label=\"" << escape_html(plot.title) << "\">\n"
      << "<text class=\"title\" x=\"" << left << "\" y=\"18\">" << escape_html(plot.title)
      << "</text>\n";
  for (const double y : ticks(f.y0, f.y1, 5)) {
    out << "<line class=\"grid\" x1=\"" << left << "\" x2=\"" << width - right << "\" y1=\""
        << format("%.1f", py(y)) << "\" y2=\"" << format("%.1f", py(y))
        << "\"/><text class=\"tick\" text-anchor=\"end\" x=\"" << left - 8 << "\" y=\""
        << format("%.1f", py(y) + 4) << "\">" << tick_label(y) << "</text>\n";
  }
  for (const double x : ticks(f.x0, f.x1, 8)) {
    out << "<text class=\"tick\" text-anchor=\"middle\" x=\"" << format("%.1f", px(x)) << "\" y=\""
        << height - bottom + 18 << "\">" << tick_label(x) << "</text>\n";
  }
  out << "<text class=\"tick\" text-anchor=\"end\" x=\"" << width - right << "\" y=\"" << height - 6
      << "\">" << escape_html(plot.x_label) << "</text>\n";
  out << "<svg x=\"" << left << "\" y=\"" << top << "\" width=\"" << width - left - right
      << "\" height=\"" << height - top - bottom << "\" viewBox=\"" << left << ' ' << top << ' '
      << width - left - right << ' ' << height - top - bottom << "\">\n";
  for (const Line& line : plot.lines) {
    std::ostringstream path;
    bool pen = false;
    for (const auto& [x, y] : line.points) {
      if (!std::isfinite(y)) {
        pen = false;
        continue;
      }
      path << (pen ? 'L' : 'M') << format("%.1f", px(x)) << ' ' << format("%.1f", py(y));
      pen = true;
    }
    out << "<path class=\"line" << (line.faint ? " faint" : "") << "\" style=\"stroke:var(--c"
        << line.color % kColors << ")\" d=\"" << path.str() << "\"/>\n";
    if (!line.markers) continue;
    for (const auto& [x, y] : line.points) {
      if (std::isfinite(y)) {
        out << "<circle style=\"fill:var(--c" << line.color % kColors << ")\" r=\"3\" cx=\""
            << format("%.1f", px(x)) << "\" cy=\"" << format("%.1f", py(y)) << "\"><title>"
            << tick_label(x) << ": " << format("%.5g", y) << "</title></circle>\n";
      }
    }
  }
  out << "</svg>\n";
  double at = width - right;
  for (auto line = plot.lines.rbegin(); line != plot.lines.rend(); ++line) {
    if (line->label.empty() || line->faint) continue;
    const double size = 7.0 * static_cast<double>(line->label.size()) + 26;
    at -= size;
    out << "<line class=\"line\" style=\"stroke:var(--c" << line->color % kColors << ")\" x1=\""
        << at << "\" x2=\"" << at + 14 << "\" y1=\"14\" y2=\"14\"/><text class=\"tick\" x=\""
        << at + 18 << "\" y=\"18\">" << escape_html(line->label) << "</text>\n";
  }
  out << "</svg>\n";
  return out.str();
}

std::string to_standalone_svg(const Plot& plot) {
  std::string svg = to_svg(plot);
  std::string style =
      "<style>.plot{background:#fff}text{font:12px "
      "system-ui,sans-serif;fill:#374151}.title{font-weight:600;font-size:14px}.grid{stroke:#"
      "e5e7eb}"
      ".line{fill:none;stroke-width:2}.faint{opacity:.25;stroke-width:1}svg{";
  for (int c = 0; c < kColors; ++c) style += "--c" + std::to_string(c) + ":" + kPalette[c] + ";";
  style += "}</style>\n";
  svg.insert(svg.find('\n') + 1, style);
  return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n" +
         svg.insert(4, " xmlns=\"http://www.w3.org/2000/svg\"");
}

}  // namespace fovea::train
