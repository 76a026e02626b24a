// SPDX-License-Identifier: Apache-2.0
#pragma once
// Which instruction set the CPU kernels use, chosen once at run time. The binary's baseline is
// x86-64-v3 (AVX2, FMA, F16C, BMI2); a file named *.simd.cpp is compiled twice, into namespaces
// fovea::avx2 and fovea::avx512.

#include <string_view>

namespace fovea {

enum class Isa { avx2, avx512, avx512_bf16 };  // each includes the ones before it

// The best this machine has, or less when the environment variable FOVEA_ISA names avx2 or avx512
// (for tests).
Isa cpu_isa();
std::string_view name(Isa isa);
// "AMD EPYC 9R14", from CPUID.
std::string_view cpu_name();

}  // namespace fovea

// Calls the version of `function` made for this machine; both are declared in the kernel's header
// by FOVEA_SIMD_DECLARE:
//   FOVEA_SIMD_DECLARE(void gelu_forward(float* y, const float* x, int64_t n);)
//   FOVEA_SIMD_CALL(gelu_forward, y, x, n);
#define FOVEA_SIMD_DECLARE(...) \
  namespace fovea::avx2 {       \
  __VA_ARGS__                   \
  }                             \
  namespace fovea::avx512 {     \
  __VA_ARGS__                   \
  }
#define FOVEA_SIMD_CALL(function, ...)                                             \
  (::fovea::cpu_isa() == ::fovea::Isa::avx2 ? ::fovea::avx2::function(__VA_ARGS__) \
                                            : ::fovea::avx512::function(__VA_ARGS__))
