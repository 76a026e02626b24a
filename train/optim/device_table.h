// SPDX-License-Identifier: Apache-2.0
#pragma once
// What train/optim/cuda/update.h asks for, from tensors on a GPU device.

#include <vector>

#include "core/tensor.h"
#include "train/optim/cuda/update.h"

namespace fovea::train {

// Tensors of one parameter, contiguous f32 on one device; m and v may be undefined.
struct DeviceRow {
  Tensor p, g, m, v;
  bool decays = false;
};

class DeviceTable {
 public:
  // The table in device memory, copied there only when it is not the last one again.
  UpdateTable operator()(const std::vector<DeviceRow>& rows);

 private:
  std::vector<UpdateEntry> entries_;
  Tensor entries_there_, chunks_there_;  // u8
  int64_t chunks_ = 0;
};

// Root of the sum of squares of every g: [1] f32 on the device.
Tensor norm_on_device(const UpdateTable& table, Device device);

}  // namespace fovea::train
