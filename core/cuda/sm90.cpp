// SPDX-License-Identifier: Apache-2.0
#include "core/cuda/sm90.h"

#include <cstdlib>
#include <string_view>

#include "core/cuda/device.h"

namespace fovea {

namespace {

bool allowed_by_environment() {
  const char* wanted = std::getenv("FOVEA_GPU_ISA");
  if (wanted == nullptr) return true;
  const std::string_view isa = wanted;
  FOVEA_CHECK(isa == "sm_80" || isa == "sm_90a",
              "FOVEA_GPU_ISA: expected sm_80 or sm_90a, found \"", isa, '"');
  return isa == "sm_90a";
}
bool sm90_allowed = true;

}  // namespace

void allow_sm90(bool allowed) { sm90_allowed = allowed; }

bool runs_sm90(Device device) {
  static const bool by_environment = allowed_by_environment();
  if (!sm90_allowed || !by_environment) return false;
#if defined(FOVEA_SM90)
  if (device.kind == Device::Kind::cuda) return known_device(device).architecture == 90;
#endif
  return device.kind == Device::Kind::interpreted;
}

}  // namespace fovea
