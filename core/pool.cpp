// SPDX-License-Identifier: Apache-2.0
#include "core/pool.h"

#include <unistd.h>

#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <map>
#include <string_view>

namespace fovea {
namespace {

// FOVEA_MEMORY_LIMIT; 0: none.
int64_t limit_of_environment() {
  const char* text = std::getenv("FOVEA_MEMORY_LIMIT");
  if (text == nullptr || *text == '\0') return 0;
  const std::string_view whole = text;
  double value = 0.0;
  const auto [rest, code] = std::from_chars(text, text + whole.size(), value);
  const std::string_view unit = whole.substr(static_cast<size_t>(rest - text));
  constexpr std::array<std::string_view, 5> kUnits{"", "KiB", "MiB", "GiB", "TiB"};
  const auto found = std::find(kUnits.begin(), kUnits.end(), unit);
  FOVEA_CHECK(
      code == std::errc{} && value > 0.0 && value < 0x1p20 * 0x1p20 && found != kUnits.end(),
      "FOVEA_MEMORY_LIMIT: expected a size such as 64MiB or 1.5GiB, found \"", text, '"');
  return static_cast<int64_t>(std::ldexp(value, 10 * static_cast<int>(found - kUnits.begin())));
}

// "blocks.3.mlp" -> "blocks.*.mlp"
std::string without_numbers(const std::string& name) {
  const auto digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
  std::string out;
  for (size_t i = 0; i < name.size(); ++i) {
    const bool starts = digit(name[i]) && (i == 0 || name[i - 1] == '.');
    if (!starts) {
      out += name[i];
      continue;
    }
    while (i + 1 < name.size() && digit(name[i + 1])) ++i;
    out += '*';
  }
  return out;
}

}  // namespace

Pool::Pool(Device device) : device_(device), limit_(limit_of_environment()) {}

Room Pool::room() const {
  const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  return {page * sysconf(_SC_AVPHYS_PAGES), page * sysconf(_SC_PHYS_PAGES)};
}

std::vector<MemoryUse> Pool::sorted_use() const {
  std::map<std::string, MemoryUse> merged;
  for (const Live& live : live_) {
    if (live.bytes <= 0) continue;
    const std::string& name = live.group.name();
    const auto [found, is_new] = merged.emplace(without_numbers(name), MemoryUse{name, 0, 0});
    found->second.bytes += live.bytes;
    if (++found->second.groups > 1) found->second.name = found->first;
  }
  std::vector<MemoryUse> all;
  all.reserve(merged.size());
  for (auto& [name, use] : merged) all.push_back(std::move(use));
  std::stable_sort(all.begin(), all.end(),
                   [](const MemoryUse& a, const MemoryUse& b) { return a.bytes > b.bytes; });
  return all;
}

void Pool::refuse(size_t bytes) {
  constexpr size_t kMostGroups = 5;
  fill(stats_);
  Room has = room();
  if (limit_ > 0) {
    has.free_bytes = std::min(has.free_bytes, std::max<int64_t>(0, limit_ - stats_.reserved_bytes));
    has.memory_bytes = std::min(has.memory_bytes, limit_);
  }
  std::string line =
      concat("out of memory on ", device_, ": wanted ", short_bytes(static_cast<int64_t>(bytes)),
             ", free ", short_bytes(has.free_bytes + stats_.cached_bytes), " of ",
             short_bytes(has.memory_bytes));
  const std::vector<MemoryUse> all = sorted_use();
  for (size_t i = 0; i < std::min(kMostGroups, all.size()); ++i) {
    line += concat(i == 0 ? "; largest live: " : ", ", all[i].name, ' ', short_bytes(all[i].bytes));
    if (all[i].groups > 1) line += concat(" (", all[i].groups, " together)");
  }
  throw OutOfMemory(line);
}

}  // namespace fovea
