// SPDX-License-Identifier: Apache-2.0
#pragma once
// Where a Tensor lives.

#include <cstdint>
#include <ostream>
#include <string_view>
#include <vector>

namespace fovea {

struct Device {
  enum class Kind : uint8_t { cpu, cuda, interpreted };
  Kind kind = Kind::cpu;
  int index = 0;  // ordinal of the card; 0 for cpu and interpreted

  bool is_cpu() const { return kind == Kind::cpu; }
  friend bool operator==(const Device&, const Device&) = default;
};

inline constexpr Device kCpu{};

constexpr std::string_view name(Device::Kind kind) {
  switch (kind) {
    case Device::Kind::cpu:
      return "cpu";
    case Device::Kind::cuda:
      return "cuda";
    case Device::Kind::interpreted:
      return "interpreted";
  }
  return "?";
}

inline std::ostream& operator<<(std::ostream& out, Device device) {
  out << name(device.kind);
  if (device.index != 0) out << ':' << device.index;
  return out;
}

// The kinds this build can run, cpu first; whether a card is there is not asked.
std::vector<Device> devices_of_build();

// "cpu", "cuda" (or "cuda:0"), "interpreted"; throws for anything else, and for a device this build
// lacks.
Device parse_device(std::string_view text);

}  // namespace fovea
