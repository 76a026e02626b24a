// SPDX-License-Identifier: Apache-2.0
#include "core/device.h"

#include <charconv>
#include <map>
#include <mutex>
#include <string>

#include "core/cuda/device.h"

namespace fovea {
namespace {

constexpr bool has(Device::Kind kind) {
#if defined(FOVEA_CUDA)
  if (kind == Device::Kind::cuda) return true;
#endif
#if defined(FOVEA_INTERPRETED)
  if (kind == Device::Kind::interpreted) return true;
#endif
  return kind == Device::Kind::cpu;
}

}  // namespace

const DeviceInfo& known_device(Device device) {
  static std::mutex mutex;
  static std::map<std::pair<Device::Kind, int>, DeviceInfo> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::pair<Device::Kind, int> key{device.kind, device.index};
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  const DeviceInfo info = FOVEA_GPU_CALL(device, device_info, device.index);
  return known[key] = info;
}

std::vector<Device> devices_of_build() {
  std::vector<Device> devices;
  for (const Device::Kind kind :
       {Device::Kind::cpu, Device::Kind::interpreted, Device::Kind::cuda}) {
    if (has(kind)) devices.push_back({kind, 0});
  }
  return devices;
}

Device parse_device(std::string_view text) {
  Device device;
  const bool numbered = text.starts_with("cuda:");
  if (text == "interpreted") {
    device.kind = Device::Kind::interpreted;
  } else if (text == "cuda" || numbered) {
    device.kind = Device::Kind::cuda;
  } else {
    FOVEA_CHECK(text == "cpu", "device: expected cpu, cuda, cuda:N or interpreted, found \"",
                std::string(text), '"');
  }
  if (numbered) {
    const char *begin = text.data() + 5, *end = text.data() + text.size();
    const auto [rest, code] = std::from_chars(begin, end, device.index);
    FOVEA_CHECK(code == std::errc{} && rest == end && device.index >= 0 && begin != end,
                "device: expected cuda:N with a number N, found \"", std::string(text), '"');
  }
  FOVEA_CHECK(device.index == 0, "device: \"", std::string(text),
              "\": one card is used; choose it with CUDA_VISIBLE_DEVICES and name it cuda");
  if (!has(device.kind)) {
    std::string known;
    for (const Device d : devices_of_build()) known += concat(known.empty() ? "" : ", ", d);
    detail::fail("device: \"", std::string(text), "\" is not in this build; it has ", known);
  }
  return device;
}

}  // namespace fovea
