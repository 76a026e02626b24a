// SPDX-License-Identifier: Apache-2.0
#include "train/tensorboard.h"

#include <array>
#include <bit>
#include <cstring>

namespace fovea::train {
namespace {

template <typename T>
std::string raw(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 128; value >>= 7) bytes += static_cast<char>(value | 128);
  return bytes + static_cast<char>(value);
}

std::string message(char key, std::string_view content) {
  return key + varint(content.size()) + std::string(content);
}

std::string masked_crc(std::string_view bytes) {
  return raw(std::rotr(crc32c(bytes), 15) + 0xA282EAD8u);
}

std::string record(std::string_view payload) {
  const std::string length = raw(static_cast<uint64_t>(payload.size()));
  return length + masked_crc(length) + std::string(payload) + masked_crc(payload);
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      t[i] = i;
      for (int bit = 0; bit < 8; ++bit) t[i] = (t[i] >> 1) ^ ((t[i] & 1u) != 0 ? 0x82F63B78u : 0u);
    }
    return t;
  }();
  uint32_t crc = 0xffffffffu;
  for (const char c : bytes) crc = (crc >> 8) ^ table[(crc ^ static_cast<unsigned char>(c)) & 255u];
  return ~crc;
}

// Event: 1 double wall_time, 2 int64 step, 3 string file_version, 5 Summary {1 Value {1 tag, 2
// float simple_value}}
std::string tensorboard_header(double wall_time) {
  return record("\x09" + raw(wall_time) + message('\x1a', "brain.Event:2"));
}

std::string tensorboard_scalar(double wall_time, int64_t step, std::string_view tag, float value) {
  const std::string entry = message('\x0a', tag) + "\x15" + raw(value);
  return record("\x09" + raw(wall_time) + "\x10" + varint(static_cast<uint64_t>(step)) +
                message('\x2a', message('\x0a', entry)));
}

}  // namespace fovea::train
