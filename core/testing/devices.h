// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tests that run on every device of the build. A suite that derives from OnDevices gets one run per
// device, named after it:
//
//   class Norms : public OnDevices {};
//   TEST_P(Norms, ...) { const Tensor x = random({4, 8}, device()); ... }
//   FOVEA_ON_DEVICES(Norms);

#include <gtest/gtest.h>

#include "core/cuda/device.h"
#include "core/tensor.h"

namespace fovea {

// The devices that can run now: a card only where one answers.
inline std::vector<Device> devices_to_test() {
  std::vector<Device> devices;
  for (const Device device : devices_of_build()) {
    if (device.kind == Device::Kind::cuda) {
      try {
        FOVEA_GPU_CALL(device, device_info, device.index);
      } catch (const Error&) {
        continue;
      }
    }
    devices.push_back(device);
  }
  return devices;
}

class OnDevices : public testing::TestWithParam<Device> {
 protected:
  static Device device() { return GetParam(); }
  // What the device computes in: f64 lives on the cpu alone.
  static bool has_f64() { return device().is_cpu(); }
};

inline std::string device_name(const testing::TestParamInfo<Device>& info) {
  return std::string(name(info.param.kind));
}

}  // namespace fovea

#define FOVEA_ON_DEVICES(Suite)                                                           \
  INSTANTIATE_TEST_SUITE_P(Devices, Suite, testing::ValuesIn(::fovea::devices_to_test()), \
                           ::fovea::device_name)
