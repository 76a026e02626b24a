// SPDX-License-Identifier: Apache-2.0
#include "core/cpu/isa.h"

#include <cpuid.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <string>

#include "core/error.h"

namespace fovea {
namespace {

// __builtin_cpu_supports also checks that the system saves the wide registers.
Isa detect() {
  __builtin_cpu_init();
  FOVEA_CHECK(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"),
              "cpu: this program needs AVX2 and FMA (x86-64-v3), which this processor lacks");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx512) return Isa::avx2;
  return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
}

Isa choose() {
  const Isa best = detect();
  const char* wanted = std::getenv("FOVEA_ISA");
  if (wanted == nullptr) return best;
  for (Isa isa : {Isa::avx2, Isa::avx512, Isa::avx512_bf16}) {
    if (name(isa) != wanted) continue;
    FOVEA_CHECK(isa <= best, "FOVEA_ISA: ", wanted, " asked for, this processor has ",
                std::string(name(best)));
    return isa;
  }
  detail::fail("FOVEA_ISA: expected avx2, avx512 or avx512_bf16, found \"", wanted, '"');
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = choose();
  return isa;
}

std::string_view name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
  }
  return "?";
}

std::string_view cpu_name() {
  static const std::string text = [] {
    std::array<unsigned, 12> words{};
    for (unsigned i = 0; i < 3; ++i) {
      __get_cpuid(0x80000002u + i, &words[i * 4], &words[i * 4 + 1], &words[i * 4 + 2],
                  &words[i * 4 + 3]);
    }
    std::array<char, 49> bytes{};
    std::memcpy(bytes.data(), words.data(), 48);
    std::string found(bytes.data());
    while (!found.empty() && found.back() == ' ') found.pop_back();
    return found;
  }();
  return text;
}

}  // namespace fovea
