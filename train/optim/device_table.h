// SPDX-License-Identifier: Apache-2.0
#pragma once
// What train/optim/cuda/update.h asks for, from tensors on a GPU device.

#include <cstring>
#include <functional>
#include <vector>

#include "core/graph.h"
#include "train/optim/cuda/update.h"

namespace fovea::train {

// Tensors of one parameter, contiguous f32 on one device; m and v may be undefined.
struct DeviceRow {
  Tensor p, g, m, v;
  bool decays = false;
};

class DeviceTable {
 public:
  // The table in device memory, copied there only when it is not the last one again. A captured
  // region gets one of its own.
  UpdateTable operator()(const std::vector<DeviceRow>& rows);

 private:
  std::vector<UpdateEntry> entries_;
  Tensor entries_there_, chunks_there_;  // u8
  int64_t chunks_ = 0;
};

// A struct that the host makes, in device memory: host_input.
template <typename T>
Tensor made_on_host(Device device, std::function<T()> make) {
  return host_input({sizeof(T)}, Dtype::u8, device, [make = std::move(make)](void* to) {
    const T made = make();
    std::memcpy(to, &made, sizeof made);
  });
}
template <typename T>
const T* struct_in(const Tensor& bytes) {
  return reinterpret_cast<const T*>(bytes.data<uint8_t>());
}

// Root of the sum of squares of every g: [1] f32 on the device.
Tensor norm_on_device(const UpdateTable& table, Device device);

}  // namespace fovea::train
