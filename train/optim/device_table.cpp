// SPDX-License-Identifier: Apache-2.0
#include "train/optim/device_table.h"

#include <cstring>

#include "core/graph.h"

namespace fovea::train {
namespace {

template <typename T>
Tensor copied(const std::vector<T>& values, Device device) {
  const size_t bytes = values.size() * sizeof(T);
  const Tensor here = Tensor::empty({static_cast<int64_t>(bytes)}, Dtype::u8);
  std::memcpy(here.raw(), values.data(), bytes);
  return host_constant(here, device);
}

}  // namespace

UpdateTable DeviceTable::operator()(const std::vector<DeviceRow>& rows) {
  if (rows.empty()) return {};
  std::vector<UpdateEntry> entries;
  for (const DeviceRow& row : rows) {
    const auto at = [](const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; };
    UpdateEntry entry{at(row.p),     at(row.g),          at(row.m), at(row.v),
                      row.g.numel(), row.decays ? 1 : 0, 1};
    for (const float* p : {static_cast<const float*>(entry.p), entry.g,
                           static_cast<const float*>(entry.m), static_cast<const float*>(entry.v)})
      if (reinterpret_cast<uintptr_t>(p) % 16 != 0) entry.aligned = 0;
    entries.push_back(entry);
  }
  const Device device = rows.front().g.device();
  const bool same =
      !is_capturing(device) && entries.size() == entries_.size() &&
      std::memcmp(entries.data(), entries_.data(), entries.size() * sizeof(UpdateEntry)) == 0;
  if (!same) {
    std::vector<UpdateChunk> chunks;
    for (size_t i = 0; i < entries.size(); ++i)
      for (int64_t begin = 0; begin < entries[i].n; begin += kUpdateChunk)
        chunks.push_back({static_cast<int32_t>(i), static_cast<int32_t>(begin / kUpdateChunk)});
    entries_there_ = copied(entries, device);
    chunks_there_ = copied(chunks, device);
    chunks_ = static_cast<int64_t>(chunks.size());
    entries_ = std::move(entries);
    if (is_capturing(device)) entries_.clear();  // its table is there when it is replayed
  }
  return {reinterpret_cast<const UpdateEntry*>(entries_there_.data<uint8_t>()),
          reinterpret_cast<const UpdateChunk*>(chunks_there_.data<uint8_t>()), chunks_};
}

Tensor norm_on_device(const UpdateTable& table, Device device) {
  const Tensor norm = Tensor::empty({1}, Dtype::f32, device);
  const Tensor partial =
      Tensor::empty({table.count * static_cast<int64_t>(sizeof(double))}, Dtype::u8, device);
  FOVEA_GPU_CALL(device, gradient_norm, norm.data<float>(),
                 reinterpret_cast<double*>(partial.data<uint8_t>()), table, stream_of(device));
  return norm;
}

}  // namespace fovea::train
