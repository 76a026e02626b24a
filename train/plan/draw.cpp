// SPDX-License-Identifier: Apache-2.0
// Pictures of a layout.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "train/plan/plan.h"

namespace fovea::train {
namespace {

using distributed::Layout;
using distributed::Stretch;

constexpr double kLeft = 120, kWidth = 640, kRow = 18, kGap = 4;

template <typename... Args>
std::string print(const char* format, Args... args) {
  char text[512];
  std::snprintf(text, sizeof text, format, args...);
  return text;
}

// A hue of its own for every group.
std::string color(int64_t group, int64_t groups, double light) {
  return print(
      "hsl(%.0f,55%%,%.0f%%)",
      360.0 * static_cast<double>(group) / static_cast<double>(std::max<int64_t>(1, groups)),
      light);
}

std::string rectangle(double x, double y, double w, double h, const std::string& fill,
                      const std::string& title) {
  return print("<rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%.1f\" fill=\"%s\">", x, y, w,
               h, fill.c_str()) +
         "<title>" + title + "</title></rect>\n";
}
std::string words(double x, double y, const std::string& text) {
  return print("<text x=\"%.1f\" y=\"%.1f\">", x, y) + text + "</text>\n";
}

// A rank's tokens on an axis of all; neighbours of a stride are one bar.
std::string bars(const std::vector<Stretch>& stretches, int64_t N, double y,
                 const std::string& fill) {
  std::string out;
  const double scale = kWidth / static_cast<double>(N);
  for (const auto& [place, count] : stretches) {
    const std::string title = concat("tokens ", place.base, " to ", place.of(count - 1),
                                     place.stride > 1 ? concat(", every ", place.stride) : "");
    out += rectangle(kLeft + scale * static_cast<double>(place.base), y,
                     scale * static_cast<double>(place.of(count - 1) - place.base + 1), kRow, fill,
                     title);
  }
  return out;
}

// Allowed pairs of two groups' stretches, as positions alone allow them.
double pairs(const attention::Mask& mask, int64_t N, const std::vector<Stretch>& queries,
             const std::vector<Stretch>& keys) {
  double sum = 0.0;
  for (const auto& [query, n] : queries) {
    for (const auto& [key, m] : keys) {
      const attention::Mask part = mask.part({query, key, N, N, 0, 1}, 1, n, m);
      for (int64_t i = 0; i < n; ++i) {
        int64_t first, last;
        part.limits(i, n, m, first, last);
        for (int64_t j = first; j < last && !part.is_interval(); ++j)
          sum += part.allowed(0, 0, i, j, n, m) ? 1.0 : 0.0;
        if (part.is_interval()) sum += static_cast<double>(std::max<int64_t>(0, last - first));
      }
    }
  }
  return sum;
}

}  // namespace

std::string draw(const Plan& plan, const Division& d) {
  constexpr int64_t kMost = 64;  // ranks of a picture
  const int R = d.mesh.ring, U = d.mesh.ulysses;
  FOVEA_CHECK(R * U <= kMost, "plan: a picture of ", R * U, " ranks that share a sample; at most ",
              kMost, " can be told apart");
  // Chunks are given out pair by pair: of a sample of few tokens.
  const int64_t all_tokens = plan.sizes.tokens,
                N = d.order == distributed::Order::dispatched
                        ? std::min<int64_t>(all_tokens, std::max(1024, 16 * R * U))
                        : all_tokens;
  const Layout layout = layout_of(plan.sizes, d, N);
  double y = 44;
  std::string body;
  for (int r = 0; r < R; ++r) {
    for (int u = 0; u < U; ++u, y += kRow + kGap) {
      body += words(8, y + 13, U > 1 ? concat("ring ", r, " ulysses ", u) : concat("ring ", r));
      body += rectangle(kLeft, y, kWidth, kRow, "#eee", "the whole sample");
      body += bars(layout.rank(r, u), N, y,
                   color(r, R, 45.0 + 30.0 * static_cast<double>(u) / static_cast<double>(U)));
    }
  }
  std::string title = concat(describe(d), ": tokens 0 to ", N - 1, " of a sample, by rank",
                             N < all_tokens ? concat("; stands for ", all_tokens) : "");
  if (d.travel == Travel::ring) {
    y += 26;
    body +=
        words(8, y - 8, "whose keys are there, step by step; height: pairs that the step computes");
    // The picture's mask: of few tokens, each a stretch of the sample's.
    const int64_t few = std::min<int64_t>(N, std::max<int64_t>(256, 4 * R));
    const Layout small(d.order, few, R);
    const attention::Mask mask = plan.sizes.mask_of(few);
    const double step = kWidth / R;
    double most = 0.0;
    std::vector<double> all;
    for (int r = 0; r < R; ++r)
      for (int s = 0; s < R; ++s) {
        all.push_back(pairs(mask, few, small.group(r), small.group((r - s + R) % R)));
        most = std::max(most, all.back());
      }
    for (int r = 0; r < R; ++r, y += kRow + kGap) {
      body += words(8, y + 13, concat("ring ", r));
      body += rectangle(kLeft, y, kWidth, kRow, "#eee", "time");
      for (int s = 0; s < R; ++s) {
        const int from = (r - s + R) % R;
        const double share = most > 0.0 ? all[static_cast<size_t>(r * R + s)] / most : 0.0;
        body += rectangle(kLeft + step * s + 1, y + kRow * (1 - share), step - 2, kRow * share,
                          color(from, R, 45.0),
                          concat("step ", s, ": keys of ring ", from, ", ",
                                 std::lround(100 * share), " % of the longest step"));
      }
    }
  }
  return print(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
             "font-family=\"sans-serif\" font-size=\"12\">\n",
             kLeft + kWidth + 16, y + 12) +
         words(8, 24, title) + body + "</svg>\n";
}

}  // namespace fovea::train
