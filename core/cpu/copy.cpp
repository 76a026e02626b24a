// SPDX-License-Identifier: Apache-2.0
#include "core/ops/copy.h"

#include <cstring>
#include <type_traits>

#include "core/cuda/copy.h"
#include "core/cuda/device.h"
#include "core/ops/strided.h"

namespace fovea {
namespace {

template <typename To, typename From>
To convert(From value) {
  if constexpr (std::is_same_v<To, From>)
    return value;
  else if constexpr (std::is_same_v<To, bool>)
    return static_cast<double>(value) != 0.0;
  else if constexpr (std::is_same_v<To, bf16>)
    return bf16(static_cast<float>(value));
  else if constexpr (std::is_same_v<From, bf16>)
    return static_cast<To>(static_cast<float>(value));
  else
    return static_cast<To>(value);
}

template <typename To, typename From>
void copy_run(To* out, int64_t out_stride, const From* source, int64_t source_stride,
              int64_t count) {
  if constexpr (std::is_same_v<To, From>) {
    if (out_stride == 1 && source_stride == 1) {
      std::memcpy(out, source, static_cast<size_t>(count) * sizeof(To));
      return;
    }
  }
  if (out_stride == 1 && source_stride == 1) {
    for (int64_t i = 0; i < count; ++i) out[i] = convert<To>(source[i]);
  } else {
    for (int64_t i = 0; i < count; ++i)
      out[i * out_stride] = convert<To>(source[i * source_stride]);
  }
}

// Between a device and the host: converted and made contiguous where the source is, then moved.
void move(const Tensor& out, const Tensor& source) {
  // f64 is for the host alone.
  if (out.device().is_cpu() && out.dtype() != source.dtype()) return copy(out, source.to(kCpu));
  const Tensor from = source.to(out.dtype()).contiguous();
  const Tensor to =
      out.is_contiguous() ? out : Tensor::empty(out.shape(), out.dtype(), out.device());
  [[maybe_unused]] const auto bytes = static_cast<size_t>(to.bytes());
  if (out.device().is_cpu()) {
    FOVEA_GPU_CALL(from.device(), copy_to_host, to.raw(), from.raw(), bytes,
                   stream_of(from.device()));
  } else if (from.device().is_cpu()) {
    FOVEA_GPU_CALL(to.device(), copy_to_device, to.raw(), from.raw(), bytes,
                   stream_of(to.device()));
  } else {
    return copy(out, source.to(kCpu));
  }
  if (!out.is_contiguous()) copy(out, to);
}

}  // namespace

void copy(const Tensor& out, const Tensor& source) {
  FOVEA_CHECK(out.defined() && source.defined(), "copy: an operand is absent");
  const Tensor from = source.shape() == out.shape() ? source : source.expand(out.shape());
  if (out.device() != from.device()) return move(out, from);
  const StridedLoop<2> loop(out.shape(), {out.strides(), from.strides()});
  if (const Device device = out.device(); !device.is_cpu()) {
    FOVEA_GPU_CALL(device, copy_strided, out.raw(), out.dtype(), from.raw(), from.dtype(),
                   layout_of(loop), stream_of(device));
    return;
  }
  dispatch_all(out.dtype(), [&]<typename To>() {
    dispatch_all(from.dtype(), [&]<typename From>() {
      To* to = out.data<To>();
      const From* src = from.data<From>();
      loop.run([&](const auto& offsets, int64_t count, const auto& strides) {
        copy_run(to + offsets[0], strides[0], src + offsets[1], strides[1], count);
      });
    });
  });
}

void fill(const Tensor& out, double value) {
  const StridedLoop<1> loop(out.shape(), {out.strides()});
  if (const Device device = out.device(); !device.is_cpu()) {
    FOVEA_GPU_CALL(device, fill_strided, out.raw(), out.dtype(), value, layout_of(loop),
                   stream_of(device));
    return;
  }
  dispatch_all(out.dtype(), [&]<typename T>() {
    T* data = out.data<T>();
    const T element = convert<T>(value);
    loop.run([&](const auto& offsets, int64_t count, const auto& strides) {
      T* to = data + offsets[0];
      if (strides[0] == 1)
        std::fill(to, to + count, element);
      else
        for (int64_t i = 0; i < count; ++i) to[i * strides[0]] = element;
    });
  });
}

}  // namespace fovea
