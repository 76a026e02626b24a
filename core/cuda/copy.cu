// SPDX-License-Identifier: Apache-2.0
// Bytes: each element read once and written once; 16 a thread and access where both lie flat and
// need no conversion.
#include <cstring>

#include "core/cuda/copy.h"
#include "core/cuda/kernel.cuh"

namespace FOVEA_GPU {
namespace {

constexpr int kThreads = 256;
constexpr int kWide = 16;  // bytes

template <typename To, typename From>
FOVEA_HD inline To convert(From value) {
  if constexpr (std::is_same_v<To, bf16>)
    return bf16(static_cast<float>(value));
  else if constexpr (std::is_same_v<To, bool>)
    return static_cast<float>(value) != 0.0f;
  else if constexpr (std::is_same_v<From, bf16>)
    return static_cast<To>(static_cast<float>(value));
  else
    return static_cast<To>(value);
}

// A block's part of `count` bytes, all on 16-byte boundaries.
__global__ void __launch_bounds__(kThreads)
    copy_bytes_kernel(Global<uint8_t> out, Global<const uint8_t> source, int64_t count) {
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWide;
  if (at + kWide <= count) {
    store(out + at, load<kWide>(source + at));
  } else {
    for (int64_t i = at; i < count; ++i) out[i] = source[i];
  }
}

template <typename To, typename From>
__global__ void __launch_bounds__(kThreads)
    copy_kernel(Global<To> out, Global<const From> source, Layout<2> layout) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= layout.count) return;
  int64_t at[2];
  layout.locate(i, at);
  const From value = source[at[1]];
  out[at[0]] = convert<To>(value);
}

// Elements one after another, kCast of them a thread, on 16-byte boundaries.
constexpr int kCast = 8;
template <typename To, typename From>
__global__ void __launch_bounds__(kThreads)
    cast_kernel(Global<To> out, Global<const From> source, int64_t count) {
  constexpr int kIn = kWide / static_cast<int>(sizeof(From)),
                kOut = kWide / static_cast<int>(sizeof(To));
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCast;
  if (at + kCast <= count) {
    float values[kCast];
    FOVEA_UNROLL
    for (int i = 0; i < kCast; i += kIn) {
      const Vec<From, kIn> part = load<kIn>(source + at + i);
      FOVEA_UNROLL
      for (int j = 0; j < kIn; ++j) values[i + j] = static_cast<float>(part[j]);
    }
    FOVEA_UNROLL
    for (int i = 0; i < kCast; i += kOut) {
      Vec<To, kOut> part;
      FOVEA_UNROLL
      for (int j = 0; j < kOut; ++j) part[j] = convert<To>(values[i + j]);
      store(out + at + i, part);
    }
  } else {
    for (int64_t i = at; i < count; ++i) {
      const From value = source[i];
      out[i] = convert<To>(value);
    }
  }
}

// `count` bytes of a repeated pattern, on a 16-byte boundary.
__global__ void __launch_bounds__(kThreads)
    fill_bytes_kernel(Global<uint8_t> out, Vec<uint8_t, kWide> pattern, int64_t count) {
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWide;
  if (at + kWide <= count) {
    store(out + at, pattern);
  } else {
    for (int i = 0; at + i < count; ++i) out[at + i] = pattern[i];
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) fill_kernel(Global<T> out, T value, Layout<1> layout) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= layout.count) return;
  int64_t at[1];
  layout.locate(i, at);
  out[at[0]] = value;
}

// f with the element type; f64 has none here.
template <typename F>
void with_type(Dtype dtype, const char* op, F&& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float{});
    case Dtype::bf16:
      return f(bf16{});
    case Dtype::i64:
      return f(int64_t{});
    case Dtype::i32:
      return f(int32_t{});
    case Dtype::u8:
      return f(uint8_t{});
    case Dtype::boolean:
      return f(bool{});
    case Dtype::f64:
      fovea::detail::fail(op, ": f64 is for the cpu; found it on a GPU device");
  }
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kWide == 0; }

}  // namespace

void copy_strided(void* out, Dtype out_dtype, const void* source, Dtype source_dtype,
                  const Layout<2>& layout, Stream stream) {
  if (layout.count == 0) return;
  if (layout.flat() && out_dtype == source_dtype && aligned(out) && aligned(source)) {
    const int64_t bytes = layout.count * size_of(out_dtype);
    launch<copy_bytes_kernel>(ceil_div(bytes, kThreads * kWide), kThreads, 0, stream,
                              static_cast<uint8_t*>(out), static_cast<const uint8_t*>(source),
                              bytes);
    return;
  }
  if (layout.flat() && aligned(out) && aligned(source)) {
    const int64_t blocks = ceil_div(layout.count, kThreads * kCast);
    if (out_dtype == Dtype::bf16 && source_dtype == Dtype::f32)
      return launch<cast_kernel<bf16, float>>(blocks, kThreads, 0, stream, static_cast<bf16*>(out),
                                              static_cast<const float*>(source), layout.count);
    if (out_dtype == Dtype::f32 && source_dtype == Dtype::bf16)
      return launch<cast_kernel<float, bf16>>(blocks, kThreads, 0, stream, static_cast<float*>(out),
                                              static_cast<const bf16*>(source), layout.count);
  }
  with_type(out_dtype, "copy", [&](auto to) {
    with_type(source_dtype, "copy", [&](auto from) {
      using To = decltype(to);
      using From = decltype(from);
      launch<copy_kernel<To, From>>(ceil_div(layout.count, kThreads), kThreads, 0, stream,
                                    static_cast<To*>(out), static_cast<const From*>(source),
                                    layout);
    });
  });
}

void fill_strided(void* out, Dtype dtype, double value, const Layout<1>& layout, Stream stream) {
  if (layout.count == 0) return;
  with_type(dtype, "fill", [&](auto type) {
    using T = decltype(type);
    const auto element = convert<T>(value);
    if (layout.flat() && aligned(out)) {
      const int64_t bytes = layout.count * size_of(dtype);
      Vec<uint8_t, kWide> pattern;
      for (size_t i = 0; i < kWide; i += sizeof element)
        std::memcpy(pattern.v + i, &element, sizeof element);
      launch<fill_bytes_kernel>(ceil_div(bytes, kThreads * kWide), kThreads, 0, stream,
                                static_cast<uint8_t*>(out), pattern, bytes);
      return;
    }
    launch<fill_kernel<T>>(ceil_div(layout.count, kThreads), kThreads, 0, stream,
                           static_cast<T*>(out), element, layout);
  });
}

}  // namespace FOVEA_GPU
