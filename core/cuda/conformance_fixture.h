// SPDX-License-Identifier: Apache-2.0
#pragma once
// What kernels may call does on every GPU device of the build what the PTX ISA says, spelled out in
// conformance_*test.cpp once more, without the interpreter's help.

#include "core/cuda/conformance_test.h"
#include "core/rng.h"
#include "core/testing/devices.h"

namespace fovea {

inline std::vector<Device> gpus() {
  std::vector<Device> devices = devices_to_test();
  std::erase_if(devices, [](Device device) { return device.is_cpu(); });
  return devices;
}

class Conformance : public testing::TestWithParam<Device> {
 protected:
  static Device device() { return GetParam(); }
  static Stream stream() { return stream_of(device()); }

  // Values in device memory.
  template <typename T>
  class Values {
   public:
    explicit Values(std::vector<T> values) : values_(std::move(values)) {
      at_ = static_cast<T*>(FOVEA_GPU_CALL(device(), device_allocate, bytes()));
      FOVEA_GPU_CALL(device(), copy_to_device, at_, values_.data(), bytes(), stream());
    }
    explicit Values(size_t n, T value = T{}) : Values(std::vector<T>(n, value)) {}
    ~Values() { FOVEA_GPU_CALL(device(), device_free, at_); }
    Values(const Values&) = delete;
    Values& operator=(const Values&) = delete;
    operator T*() const { return at_; }
    const std::vector<T>& get() {
      FOVEA_GPU_CALL(device(), copy_to_host, values_.data(), at_, bytes(), stream());
      return values_;
    }
    T operator[](size_t i) const { return values_[i]; }  // as last got

   private:
    size_t bytes() const { return values_.size() * sizeof(T); }
    std::vector<T> values_;
    T* at_ = nullptr;
  };

  // Whole numbers in [-most, most].
  static std::vector<int> draw(size_t n, int most, uint64_t seed) {
    std::vector<int> numbers(n);
    RngKey key;
    key.key = seed;
    for (size_t i = 0; i < n; ++i)
      numbers[i] =
          static_cast<int>(random_below(key, i, 2 * static_cast<uint64_t>(most) + 1)) - most;
    return numbers;
  }
};

}  // namespace fovea

#define FOVEA_ON_GPUS(Suite)                                                   \
  INSTANTIATE_TEST_SUITE_P(Devices, Suite, testing::ValuesIn(::fovea::gpus()), \
                           ::fovea::device_name);                              \
  GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Suite)
