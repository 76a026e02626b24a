// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the driver's management library knows without CUDA being started.

namespace fovea::cuda {

// Cards that this process may use, whatever CUDA_VISIBLE_DEVICES says; 0 without a driver.
int cards_of_node();

}  // namespace fovea::cuda
