// SPDX-License-Identifier: Apache-2.0
// Plots as pixels: anti-aliased strokes by distance, digits as strokes of seven segments, PNG
// through libpng.
#include <png.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/error.h"
#include "train/report/plot.h"

namespace fovea::train {
namespace {

struct Color {
  double r, g, b;
};

Color parse(const char* hex) {
  unsigned value = 0;
  std::sscanf(hex, "#%6x", &value);
  return {static_cast<double>(value >> 16), static_cast<double>((value >> 8) & 255u),
          static_cast<double>(value & 255u)};
}

class Canvas {
 public:
  Canvas(int width, int height)
      : width_(width), height_(height), pixels_(static_cast<size_t>(3 * width * height), 255) {}

  // A stroke with round ends: each pixel is covered by how far it lies inside.
  void stroke(double x0, double y0, double x1, double y1, double thickness, Color color,
              double opacity) {
    const double reach = thickness / 2 + 1, dx = x1 - x0, dy = y1 - y0, length2 = dx * dx + dy * dy;
    const int top = std::max(0, static_cast<int>(std::min(y0, y1) - reach)),
              bottom = std::min(height_ - 1, static_cast<int>(std::max(y0, y1) + reach));
    const int left = std::max(0, static_cast<int>(std::min(x0, x1) - reach)),
              right = std::min(width_ - 1, static_cast<int>(std::max(x0, x1) + reach));
    for (int y = top; y <= bottom; ++y) {
      for (int x = left; x <= right; ++x) {
        const double t =
            length2 > 0 ? std::clamp(((x - x0) * dx + (y - y0) * dy) / length2, 0.0, 1.0) : 0.0;
        const double distance = std::hypot(x - x0 - t * dx, y - y0 - t * dy);
        blend(x, y, color, opacity * std::clamp(thickness / 2 + 0.5 - distance, 0.0, 1.0));
      }
    }
  }

  // Digits, '.', '-', 'k', 'M', 'e'; returns nothing else drawable as a gap. Right end at x.
  void number(const std::string& text, double x, double y, Color color) {
    constexpr double w = 8, h = 14, advance = 13;
    double at = x - advance * static_cast<double>(text.size());
    for (const char c : text) {
      for (const auto& [ax, ay, bx, by] : segments(c))
        stroke(at + ax * w, y + ay * h, at + bx * w, y + by * h, 1.6, color, 1.0);
      at += advance;
    }
  }

  std::string encode() const {
    png_image image;
    std::memset(&image, 0, sizeof image);
    image.version = PNG_IMAGE_VERSION;
    image.width = static_cast<png_uint_32>(width_);
    image.height = static_cast<png_uint_32>(height_);
    image.format = PNG_FORMAT_RGB;
    png_alloc_size_t size = 0;
    FOVEA_CHECK(png_image_write_get_memory_size(image, size, 0, pixels_.data(), 0, nullptr) != 0,
                "png: ", image.message);
    std::string bytes(size, '\0');
    FOVEA_CHECK(
        png_image_write_to_memory(&image, bytes.data(), &size, 0, pixels_.data(), 0, nullptr) != 0,
        "png: ", image.message);
    bytes.resize(size);
    return bytes;
  }

 private:
  struct Segment {
    double ax, ay, bx, by;
  };
  static std::vector<Segment> segments(char c) {
    //                 0 top           1 upper right   2 lower right   3 bottom        4 lower left
    //                 5 upper left    6 middle
    static const Segment all[] = {{0, 0, 1, 0},  {1, 0, 1, .5}, {1, .5, 1, 1}, {0, 1, 1, 1},
                                  {0, .5, 0, 1}, {0, 0, 0, .5}, {0, .5, 1, .5}};
    static const char* digits[] = {"012345", "12",     "01643", "01623",   "5612",
                                   "05623",  "056432", "012",   "0123456", "651023"};
    std::vector<Segment> out;
    if (c >= '0' && c <= '9') {
      for (const char* s = digits[c - '0']; *s != '\0'; ++s) out.push_back(all[*s - '0']);
    } else if (c == '-') {
      out = {all[6]};
    } else if (c == '.') {
      out = {{.4, 1, .5, 1}};
    } else if (c == 'k') {
      out = {{0, 0, 0, 1}, {0, .7, .9, .35}, {.3, .6, 1, 1}};
    } else if (c == 'M') {
      out = {{0, 1, 0, 0}, {0, 0, .5, .5}, {.5, .5, 1, 0}, {1, 0, 1, 1}};
    } else if (c == 'e') {
      out = {{0, .7, 1, .7},  {1, .7, .9, .4}, {.9, .4, .1, .4},
             {.1, .4, 0, .7}, {0, .7, .2, 1},  {.2, 1, 1, 1}};
    }
    return out;
  }
  void blend(int x, int y, Color color, double alpha) {
    uint8_t* p = &pixels_[3 * (static_cast<size_t>(y) * static_cast<size_t>(width_) +
                               static_cast<size_t>(x))];
    const double rgb[] = {color.r, color.g, color.b};
    for (int c = 0; c < 3; ++c)
      p[c] = static_cast<uint8_t>(std::lround(p[c] + (rgb[c] - p[c]) * alpha));
  }

  int width_, height_;
  std::vector<uint8_t> pixels_;
};

}  // namespace

std::string to_png(const Plot& plot) {
  constexpr double width = 1200, height = 720, left = 110, right = 30, top = 30, bottom = 60;
  Canvas canvas(static_cast<int>(width), static_cast<int>(height));
  const Frame f = frame_of(plot);
  const auto px = [&](double x) {
    return left + (x - f.x0) / (f.x1 - f.x0) * (width - left - right);
  };
  const auto py = [&](double y) {
    return std::clamp(height - bottom - (y - f.y0) / (f.y1 - f.y0) * (height - top - bottom),
                      top - 5, height);
  };
  const Color grid = parse("#e5e7eb"), text = parse("#374151");
  for (const double y : ticks(f.y0, f.y1, 6)) {
    canvas.stroke(left, py(y), width - right, py(y), 1.0, grid, 1.0);
    canvas.number(tick_label(y), left - 12, py(y) - 7, text);
  }
  for (const double x : ticks(f.x0, f.x1, 8)) {
    const std::string label = tick_label(x);
    canvas.stroke(px(x), height - bottom, px(x), height - bottom + 6, 1.0, text, 1.0);
    canvas.number(label, px(x) + 6.5 * static_cast<double>(label.size()), height - bottom + 16,
                  text);
  }
  for (const Line& line : plot.lines) {
    const Color color = parse(kPalette[line.color % kColors]);
    for (size_t i = 0; i < line.points.size(); ++i) {
      const auto& [x, y] = line.points[i];
      if (!std::isfinite(y)) continue;
      if (line.markers) canvas.stroke(px(x), py(y), px(x), py(y), 9.0, color, 1.0);
      if (i > 0 && std::isfinite(line.points[i - 1].second)) {
        canvas.stroke(px(line.points[i - 1].first), py(line.points[i - 1].second), px(x), py(y),
                      line.faint ? 1.2 : 3.0, color, line.faint ? 0.3 : 1.0);
      }
    }
  }
  return canvas.encode();
}

}  // namespace fovea::train
