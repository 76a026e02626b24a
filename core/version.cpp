// SPDX-License-Identifier: Apache-2.0
#include "core/version.h"

namespace fovea {

const char* version() { return FOVEA_VERSION; }

}  // namespace fovea
