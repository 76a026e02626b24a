// SPDX-License-Identifier: Apache-2.0
#include "train/report/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <sstream>

#include "core/allocator.h"
#include "core/error.h"
#include "core/io/file.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/report/plot.h"

namespace fovea::train {
namespace {

struct Run {
  std::string name;
  std::string config;
  std::map<std::string, std::string> settings;  // "train.steps" -> "900"
  std::vector<Metrics> train, val;
  std::string sample;
};

// Our own resolved files: "[section]" lines and "key = value" lines.
std::map<std::string, std::string> flatten(const std::string& toml) {
  std::map<std::string, std::string> settings;
  std::istringstream in(toml);
  std::string line, section;
  while (std::getline(in, line)) {
    if (line.starts_with('[')) {
      section = line.substr(1, line.find(']') - 1) + ".";
    } else if (const size_t equals = line.find(" = ");
               equals != std::string::npos && !line.starts_with('#')) {
      std::string value = line.substr(equals + 3);
      if (!value.starts_with('"')) value = value.substr(0, value.find("  #"));
      settings[section + line.substr(0, equals)] = value;
    }
  }
  return settings;
}

Run read_run(const std::filesystem::path& path) {
  Run run;
  run.name =
      path.filename().empty() ? path.parent_path().filename().string() : path.filename().string();
  run.config = read_file(path / "config.toml");
  run.settings = flatten(run.config);
  FOVEA_CHECK(std::filesystem::exists(path / "metrics.jsonl"), "report: ", path.string(),
              " has no metrics.jsonl");
  for (Metrics& metrics : read_metrics(path / "metrics.jsonl"))
    (metrics.split == "val" ? run.val : run.train).push_back(std::move(metrics));
  FOVEA_CHECK(!run.train.empty(), "report: ", (path / "metrics.jsonl").string(),
              " holds no training steps");
  if (std::filesystem::exists(path / "sample.txt")) run.sample = read_file(path / "sample.txt");
  return run;
}

std::vector<std::pair<double, double>> points(const std::vector<Metrics>& metrics,
                                              const std::string& name) {
  std::vector<std::pair<double, double>> out;
  out.reserve(metrics.size());
  for (const Metrics& m : metrics) out.emplace_back(static_cast<double>(m.step), m.value(name));
  return out;
}

// Running mean over a fiftieth of the curve on each side.
std::vector<std::pair<double, double>> smooth(const std::vector<std::pair<double, double>>& raw) {
  const auto n = static_cast<int64_t>(raw.size()), reach = std::max<int64_t>(1, n / 50);
  std::vector<std::pair<double, double>> out;
  for (int64_t i = 0; i < n; ++i) {
    double total = 0.0, count = 0.0;
    for (int64_t j = std::max<int64_t>(0, i - reach); j <= std::min(n - 1, i + reach); ++j) {
      if (!std::isfinite(raw[static_cast<size_t>(j)].second)) continue;
      total += raw[static_cast<size_t>(j)].second;
      ++count;
    }
    out.emplace_back(raw[static_cast<size_t>(i)].first, count > 0 ? total / count : NAN);
  }
  return out;
}

Plot loss_plot(const std::vector<Run>& runs) {
  Plot plot{"Loss", "step", "nats", {}};
  const bool one = runs.size() == 1;
  for (size_t i = 0; i < runs.size(); ++i) {
    const int color = static_cast<int>(one ? 0 : i);
    const auto raw = points(runs[i].train, "loss");
    plot.lines.push_back({"", color, raw, true, false});
    plot.lines.push_back({one ? "training" : runs[i].name, color, smooth(raw), false, false});
    if (!runs[i].val.empty())
      plot.lines.push_back(
          {one ? "held out" : "", one ? 1 : color, points(runs[i].val, "loss"), false, true});
  }
  return plot;
}

Plot simple_plot(const std::vector<Run>& runs, const std::string& title, const std::string& value,
                 bool val) {
  Plot plot{title, "step", "", {}};
  for (size_t i = 0; i < runs.size(); ++i) {
    plot.lines.push_back({runs.size() > 1 ? runs[i].name : "", static_cast<int>(i),
                          points(val ? runs[i].val : runs[i].train, value), false, val});
  }
  return plot;
}

std::string number(double value, int digits) {
  if (!std::isfinite(value)) return "–";
  char text[40];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

double median_speed(const Run& run) {
  std::vector<double> speeds;
  for (const Metrics& m : run.train) speeds.push_back(m.value("units_per_s"));
  std::sort(speeds.begin(), speeds.end());
  return speeds[speeds.size() / 2];
}

std::string table(const std::vector<Run>& runs) {
  std::ostringstream out;
  out << "<table><thead><tr><th>run</th><th>steps</th><th>training loss</th><th>held-out "
         "loss</th><th>best</th><th>accuracy</th><th>per second</th>"
         "<th>of peak</th><th>time</th><th>memory</th></tr></thead><tbody>\n";
  for (const Run& run : runs) {
    double best = NAN;
    for (const Metrics& m : run.val)
      best = std::isfinite(best) ? std::min(best, m.value("loss")) : m.value("loss");
    const Metrics& last = run.train.back();
    const double val = run.val.empty() ? NAN : run.val.back().value("loss"),
                 accuracy = run.val.empty() ? NAN : run.val.back().value("accuracy");
    out << "<tr><td>" << escape_html(run.name) << "</td><td>" << last.step << "</td><td>"
        << number(smooth(points(run.train, "loss")).back().second, 4) << "</td><td>"
        << number(val, 4) << "</td><td>" << number(best, 4) << "</td><td>"
        << number(100.0 * accuracy, 2) << " %</td><td>" << short_count(median_speed(run))
        << "</td><td>" << number(100.0 * last.value("mfu"), 0) << " %</td><td>"
        << short_time(last.time_s) << "</td><td>"
        << short_bytes(static_cast<int64_t>(last.value("memory_bytes"))) << "</td></tr>\n";
  }
  out << "</tbody></table>\n";
  return out.str();
}

std::string differences(const std::vector<Run>& runs) {
  std::set<std::string> keys;
  for (const Run& run : runs) {
    for (const auto& [key, value] : run.settings) keys.insert(key);
  }
  std::ostringstream rows;
  for (const std::string& key : keys) {
    std::set<std::string> values;
    for (const Run& run : runs)
      values.insert(run.settings.contains(key) ? run.settings.at(key) : "");
    if (values.size() < 2) continue;
    rows << "<tr><td>" << escape_html(key) << "</td>";
    for (const Run& run : runs)
      rows << "<td>" << escape_html(run.settings.contains(key) ? run.settings.at(key) : "–")
           << "</td>";
    rows << "</tr>\n";
  }
  if (rows.str().empty()) return "";
  std::ostringstream out;
  out << "<h2>What differs</h2><table><thead><tr><th>key</th>";
  for (const Run& run : runs) out << "<th>" << escape_html(run.name) << "</th>";
  out << "</tr></thead><tbody>\n" << rows.str() << "</tbody></table>\n";
  return out.str();
}

std::string csv(const std::vector<Run>& runs) {
  std::ostringstream out;
  out.precision(17);
  out << "run,split,step,time_s,name,value\n";
  for (const Run& run : runs) {
    for (const auto* part : {&run.train, &run.val}) {
      for (const Metrics& m : *part) {
        for (const auto& [name, value] : m.values)
          out << run.name << ',' << m.split << ',' << m.step << ',' << m.time_s << ',' << name
              << ',' << value << '\n';
      }
    }
  }
  return out.str();
}

std::string style() {
  std::string css =
      R"(:root{--text:#1f2937;--soft:#6b7280;--grid:#e5e7eb;--paper:#ffffff;--card:#f9fafb;)";
  for (int c = 0; c < kColors; ++c) css += "--c" + std::to_string(c) + ":" + kPalette[c] + ";";
  css += R"(}
@media(prefers-color-scheme:dark){:root{--text:#e5e7eb;--soft:#9ca3af;--grid:#374151;--paper:#111827;--card:#1f2937;
--c0:#60a5fa;--c1:#f87171;--c2:#34d399;--c3:#fbbf24;--c4:#a78bfa;--c5:#22d3ee}}
body{margin:0 auto;max-width:1180px;padding:2rem 1.25rem;background:var(--paper);color:var(--text);font:15px/1.55 system-ui,sans-serif}
h1{font-size:1.5rem;font-weight:650;margin:0 0 1rem}h2{font-size:1.05rem;font-weight:600;margin:2rem 0 .75rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th{font-weight:500;color:var(--soft);text-align:left}th,td{padding:.35rem .9rem .35rem 0;border-bottom:1px solid var(--grid);white-space:nowrap}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(520px,100%),1fr));gap:1.25rem}.wide{grid-column:1/-1}
figure{margin:0;background:var(--card);border-radius:10px;padding:.75rem}svg.plot{width:100%;height:auto;display:block}
svg text{fill:var(--text);font:12px system-ui,sans-serif}svg .tick{fill:var(--soft);font-size:11px}svg .title{font-weight:600;font-size:13px}
svg .grid{stroke:var(--grid)}svg .line{fill:none;stroke-width:2;stroke-linejoin:round}svg .faint{opacity:.28;stroke-width:1}
pre{background:var(--card);border-radius:10px;padding:1rem;overflow-x:auto;font:13px/1.5 ui-monospace,monospace;white-space:pre-wrap}
details summary{cursor:pointer;color:var(--soft)})";
  return css;
}

}  // namespace

void write_report(const std::vector<std::filesystem::path>& paths,
                  const std::filesystem::path& html) {
  FOVEA_CHECK(!paths.empty(), "report: no run given");
  std::vector<Run> runs;
  runs.reserve(paths.size());
  for (const auto& path : paths) runs.push_back(read_run(path));
  const Plot loss = loss_plot(runs);
  std::ostringstream out;
  out << "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
         "content=\"width=device-width,initial-scale=1\"><title>"
      << escape_html(runs.front().name) << (runs.size() > 1 ? " and others" : "")
      << "</title>\n<style>" << style() << "</style></head><body>\n<h1>"
      << (runs.size() == 1 ? escape_html(runs.front().name) : std::to_string(runs.size()) + " runs")
      << "</h1>\n"
      << table(runs) << differences(runs)
      << "<h2>Curves</h2><div class=\"plots\">\n<figure class=\"wide\">" << to_svg(loss)
      << "</figure>\n";
  const bool evaluated =
      std::any_of(runs.begin(), runs.end(), [](const Run& run) { return !run.val.empty(); });
  if (evaluated)
    out << "<figure>" << to_svg(simple_plot(runs, "Held-out accuracy", "accuracy", true))
        << "</figure>\n";
  for (const auto& [title, value] :
       {std::pair{"Learning rate", "lr"}, std::pair{"Gradient norm", "grad_norm"},
        std::pair{"Tokens or images per second", "units_per_s"}}) {
    out << "<figure>" << to_svg(simple_plot(runs, title, value, false)) << "</figure>\n";
  }
  out << "</div>\n";
  for (const Run& run : runs) {
    if (!run.sample.empty())
      out << "<h2>What " << (runs.size() > 1 ? escape_html(run.name) : "it") << " writes</h2><pre>"
          << escape_html(run.sample) << "</pre>\n";
  }
  for (const Run& run : runs)
    out << "<h2>Config</h2><details><summary>" << escape_html(run.name) << "</summary><pre>"
        << escape_html(run.config) << "</pre></details>\n";
  out << "</body></html>\n";
  const std::filesystem::path folder =
      html.has_parent_path() ? html.parent_path() : std::filesystem::path(".");
  FOVEA_CHECK(!html.filename().empty() && !std::filesystem::is_directory(html),
              "report: ", html.string(), " is a folder; expected the name of a file");
  replace_files(folder, [&](const std::filesystem::path& temporary) {
    replace_file(temporary / "curves.svg", to_standalone_svg(loss));
    replace_file(temporary / "curves.png", to_png(loss));
    replace_file(temporary / "curves.csv", csv(runs));
    replace_file(temporary / html.filename(), out.str());
  });
}

}  // namespace fovea::train
