// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace fovea {

// Of this program: "0.1.0".
const char* version();

}  // namespace fovea
