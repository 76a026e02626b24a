// SPDX-License-Identifier: Apache-2.0
#include "train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/io/file.h"
#include "train/tensorboard.h"

namespace fovea::train {
namespace {

std::string number(double value) {
  if (std::isnan(value)) return "\"nan\"";
  if (std::isinf(value)) return value > 0 ? "\"inf\"" : "\"-inf\"";
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

double parse_number(const nlohmann::json& json) {
  if (!json.is_string()) return json.get<double>();
  const std::string text = json.get<std::string>();
  FOVEA_CHECK(text == "nan" || text == "inf" || text == "-inf", '"', text, "\" is no number");
  return text == "nan" ? std::numeric_limits<double>::quiet_NaN()
                       : std::numeric_limits<double>::infinity() * (text == "inf" ? 1.0 : -1.0);
}

int64_t parse_integer(const nlohmann::json& json, const char* key) {
  const nlohmann::json& value = json.at(key);
  FOVEA_CHECK(value.is_number_integer() && value.get<int64_t>() >= 0, key, " is ", value.dump(),
              "; expected an integer of 0 or more");
  return value.get<int64_t>();
}

Metrics parse_line(const std::string& line) {
  const auto json = nlohmann::json::parse(line);
  FOVEA_CHECK(json.is_object(), "expected an object with step, tokens, time_s and split");
  Metrics metrics{parse_integer(json, "step"),
                  parse_integer(json, "tokens"),
                  parse_number(json.at("time_s")),
                  json.at("split").get<std::string>(),
                  {}};
  for (const auto& [key, value] : json.items()) {
    if (key != "step" && key != "tokens" && key != "time_s" && key != "split")
      metrics.values.emplace_back(key, parse_number(value));
  }
  return metrics;
}

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

void append(int file, const std::string& bytes, const std::string& what) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t put = ::write(file, bytes.data() + done, bytes.size() - done);
    if (put < 0 && errno == EINTR) continue;
    FOVEA_CHECK(put > 0, what, ": ", std::strerror(errno));
    done += static_cast<size_t>(put);
  }
}

}  // namespace

double Metrics::value(const std::string& name) const {
  for (const auto& [key, value] : values) {
    if (key == name) return value;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

std::string to_json(const Metrics& metrics) {
  std::string line = "{\"step\": " + std::to_string(metrics.step) +
                     ", \"tokens\": " + std::to_string(metrics.tokens) +
                     ", \"time_s\": " + number(metrics.time_s) +
                     ", \"split\": " + nlohmann::json(metrics.split).dump();
  for (const auto& [key, value] : metrics.values)
    line += ", " + nlohmann::json(key).dump() + ": " + number(value);
  return line + "}";
}

std::vector<Metrics> read_metrics(const std::filesystem::path& path) {
  const std::string text = read_file(path);
  std::vector<Metrics> all;
  int64_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // cut off while it was written
    ++line_number;
    try {
      all.push_back(parse_line(text.substr(begin, end - begin)));
    } catch (const std::exception& error) {
      throw Error(concat("metrics ", path.string(), ':', line_number, ": ", error.what()));
    }
    begin = end + 1;
  }
  return all;
}

MetricsWriter::MetricsWriter(const std::filesystem::path& folder, int64_t last_step)
    : path_(folder / "metrics.jsonl") {
  if (std::filesystem::exists(path_)) {
    std::string kept;
    for (const Metrics& metrics : read_metrics(path_)) {
      if (metrics.step <= last_step) kept += to_json(metrics) + "\n";
    }
    replace_file(path_, kept);
  }
  file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  FOVEA_CHECK(file_ >= 0, "metrics ", path_.string(), ": ", std::strerror(errno));
  char host[64] = "host";
  gethostname(host, sizeof host - 1);
  const double now = wall_time();
  const std::filesystem::path events =
      folder / concat("events.out.tfevents.", static_cast<int64_t>(now), '.', host, '.', getpid());
  events_ = ::open(events.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  FOVEA_CHECK(events_ >= 0, "metrics ", events.string(), ": ", std::strerror(errno));
  append(events_, tensorboard_header(now), events.string());
}

MetricsWriter::~MetricsWriter() {
  if (file_ >= 0) close(file_);
  if (events_ >= 0) close(events_);
}

void MetricsWriter::write(const Metrics& metrics) {
  append(file_, to_json(metrics) + "\n", "metrics " + path_.string());
  std::string events;
  for (const auto& [key, value] : metrics.values)
    events += tensorboard_scalar(wall_time(), metrics.step, metrics.split + "/" + key,
                                 static_cast<float>(value));
  append(events_, events, "metrics " + path_.string() + ", events");
}

}  // namespace fovea::train
