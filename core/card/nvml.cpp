// SPDX-License-Identifier: Apache-2.0
#include "core/card/nvml.h"

#include "core/card/library.h"
#include "core/error.h"

namespace fovea::cuda {

// The library comes with the driver; its header may not be there.
int cards_of_node() {
  try {
    const Library library{"libnvidia-ml.so.1"};
    const auto start = library.function<int (*)()>("nvmlInit_v2");
    const auto count = library.function<int (*)(unsigned*)>("nvmlDeviceGetCount_v2");
    const auto stop = library.function<int (*)()>("nvmlShutdown");
    if (start() != 0) return 0;
    unsigned cards = 0;
    const int status = count(&cards);
    stop();
    return status == 0 ? static_cast<int>(cards) : 0;
  } catch (const Error&) {  // no driver
    return 0;
  }
}

}  // namespace fovea::cuda
