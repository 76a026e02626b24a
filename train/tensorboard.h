// SPDX-License-Identifier: Apache-2.0
#pragma once
// TensorBoard event records, byte by byte: u64 length, masked CRC-32C of it, payload (protobuf
// Event), masked CRC-32C.

#include <cstdint>
#include <string>
#include <string_view>

namespace fovea::train {

// CRC-32C (Castagnoli, reflected 0x82F63B78).
uint32_t crc32c(std::string_view bytes);

// The first record of a file, and one record for a scalar.
std::string tensorboard_header(double wall_time);
std::string tensorboard_scalar(double wall_time, int64_t step, std::string_view tag, float value);

}  // namespace fovea::train
