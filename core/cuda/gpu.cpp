// SPDX-License-Identifier: Apache-2.0
#include "core/cuda/gpu.h"

namespace fovea {

Stream stream_of(Device) { return {}; }

}  // namespace fovea
