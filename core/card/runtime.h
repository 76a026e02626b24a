// SPDX-License-Identifier: Apache-2.0
#pragma once
// Checks around the CUDA runtime (linked statically; the driver is found when it is first called).

#include <cuda_runtime.h>

#include "core/error.h"

namespace fovea::cuda {

// Throws "cuda <call>: <reason>" unless the call succeeded.
void check(cudaError_t status, const char* call);

}  // namespace fovea::cuda

#define FOVEA_CUDA_CHECK(call) ::fovea::cuda::check((call), #call)
