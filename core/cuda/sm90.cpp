// SPDX-License-Identifier: Apache-2.0
#include "core/cuda/sm90.h"

#include <map>
#include <mutex>

#include "core/cuda/device.h"

namespace fovea {

namespace {
bool sm90_allowed = true;
}
void allow_sm90(bool allowed) { sm90_allowed = allowed; }

bool runs_sm90(Device device) {
  if (!sm90_allowed) return false;
#if defined(FOVEA_SM90)
  if (device.kind == Device::Kind::cuda) {
    static std::mutex mutex;
    static std::map<int, bool> answers;  // by card
    const std::lock_guard<std::mutex> lock(mutex);
    const auto known = answers.find(device.index);
    if (known != answers.end()) return known->second;
    return answers[device.index] = cuda::device_info(device.index).architecture == 90;
  }
#endif
  return device.kind == Device::Kind::interpreted;
}

}  // namespace fovea
