// SPDX-License-Identifier: Apache-2.0
#pragma once
// Products of warpgroups with nvcc (wgmma); what they mean is said in core/interpreter/hopper.h.

#include "core/cuda/kernel90.cuh"

namespace fovea::cuda {

// An operand in shared memory.
struct Descriptor {
  uint64_t word;
  __device__ Descriptor operator+(int bytes) const {
    return {word + static_cast<uint64_t>(bytes >> 4)};
  }
};

template <typename T>
__device__ inline Descriptor tile_descriptor(const T* tile, Swizzle swizzle, int leading_bytes,
                                             int stride_bytes) {
  const uint64_t code = swizzle == Swizzle::none ? 0 : 4 - static_cast<uint64_t>(swizzle);
  return {uint64_t{(shared_address(tile) & 0x3ffffu) >> 4} |
          static_cast<uint64_t>(leading_bytes >> 4) << 16 |
          static_cast<uint64_t>(stride_bytes >> 4) << 32 | code << 62};
}

template <typename T>
__device__ inline Descriptor k_major(const T* tile, Swizzle swizzle = Swizzle::b128) {
  return tile_descriptor(tile, swizzle, 16, 8 * span_bytes(swizzle));
}
template <typename T>
__device__ inline Descriptor mn_major(const T* tile, int leading_bytes,
                                      Swizzle swizzle = Swizzle::b128) {
  return tile_descriptor(tile, swizzle, leading_bytes, 8 * span_bytes(swizzle));
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int N>
__device__ inline void keep(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
__device__ inline void keep(uint32_t (&a)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// The registers of an accumulator, in the instruction and as operands, eight at a time.
#define FOVEA_R8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define FOVEA_R16 FOVEA_R8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define FOVEA_R24 FOVEA_R16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define FOVEA_R32 FOVEA_R24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define FOVEA_R40 FOVEA_R32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define FOVEA_R48 FOVEA_R40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define FOVEA_R56 FOVEA_R48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define FOVEA_R64 FOVEA_R56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define FOVEA_R72 FOVEA_R64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define FOVEA_R80 FOVEA_R72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define FOVEA_R88 FOVEA_R80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define FOVEA_R96 FOVEA_R88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define FOVEA_R104 FOVEA_R96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define FOVEA_R112 FOVEA_R104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define FOVEA_R120 FOVEA_R112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define FOVEA_R128 FOVEA_R120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define FOVEA_D8 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define FOVEA_D16                                                                       \
  FOVEA_D8, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), \
      "+f"(d[14]), "+f"(d[15])
#define FOVEA_D24                                                                          \
  FOVEA_D16, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), \
      "+f"(d[22]), "+f"(d[23])
#define FOVEA_D32                                                                          \
  FOVEA_D24, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), \
      "+f"(d[30]), "+f"(d[31])
#define FOVEA_D40                                                                          \
  FOVEA_D32, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), \
      "+f"(d[38]), "+f"(d[39])
#define FOVEA_D48                                                                          \
  FOVEA_D40, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), \
      "+f"(d[46]), "+f"(d[47])
#define FOVEA_D56                                                                          \
  FOVEA_D48, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), \
      "+f"(d[54]), "+f"(d[55])
#define FOVEA_D64                                                                          \
  FOVEA_D56, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), \
      "+f"(d[62]), "+f"(d[63])
#define FOVEA_D72                                                                          \
  FOVEA_D64, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), \
      "+f"(d[70]), "+f"(d[71])
#define FOVEA_D80                                                                          \
  FOVEA_D72, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), \
      "+f"(d[78]), "+f"(d[79])
#define FOVEA_D88                                                                          \
  FOVEA_D80, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), \
      "+f"(d[86]), "+f"(d[87])
#define FOVEA_D96                                                                          \
  FOVEA_D88, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), \
      "+f"(d[94]), "+f"(d[95])
#define FOVEA_D104                                                                           \
  FOVEA_D96, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), \
      "+f"(d[102]), "+f"(d[103])
#define FOVEA_D112                                                                                \
  FOVEA_D104, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), \
      "+f"(d[110]), "+f"(d[111])
#define FOVEA_D120                                                                                \
  FOVEA_D112, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), \
      "+f"(d[118]), "+f"(d[119])
#define FOVEA_D128                                                                                \
  FOVEA_D120, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), \
      "+f"(d[126]), "+f"(d[127])

// N, its registers, and the numbers of the operands that follow them.
#define FOVEA_WGMMA(n, registers, a, b, p, ta, tb)                                             \
  if constexpr (N == n)                                                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" p                                          \
               ", 0;\n"                                                                        \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" FOVEA_R##registers \
               "}, %" a ", %" b ", p, 1, 1, %" ta ", %" tb ";\n}"                              \
               : FOVEA_D##registers                                                            \
               : "l"(a_tile.word), "l"(b_tile.word), "r"(add), "n"(kA), "n"(kB))
template <int N, Major A = Major::k, Major B = Major::k>
__device__ inline void wgmma(float (&d)[N / 2], Descriptor a_tile, Descriptor b_tile,
                             bool accumulate) {
  static_assert(N >= 16 && N <= 256 && N % 16 == 0);
  const int add = accumulate ? 1 : 0;
  constexpr int kA = A == Major::mn ? 1 : 0, kB = B == Major::mn ? 1 : 0;
  FOVEA_WGMMA(16, 8, "8", "9", "10", "11", "12");
  FOVEA_WGMMA(32, 16, "16", "17", "18", "19", "20");
  FOVEA_WGMMA(48, 24, "24", "25", "26", "27", "28");
  FOVEA_WGMMA(64, 32, "32", "33", "34", "35", "36");
  FOVEA_WGMMA(80, 40, "40", "41", "42", "43", "44");
  FOVEA_WGMMA(96, 48, "48", "49", "50", "51", "52");
  FOVEA_WGMMA(112, 56, "56", "57", "58", "59", "60");
  FOVEA_WGMMA(128, 64, "64", "65", "66", "67", "68");
  FOVEA_WGMMA(144, 72, "72", "73", "74", "75", "76");
  FOVEA_WGMMA(160, 80, "80", "81", "82", "83", "84");
  FOVEA_WGMMA(176, 88, "88", "89", "90", "91", "92");
  FOVEA_WGMMA(192, 96, "96", "97", "98", "99", "100");
  FOVEA_WGMMA(208, 104, "104", "105", "106", "107", "108");
  FOVEA_WGMMA(224, 112, "112", "113", "114", "115", "116");
  FOVEA_WGMMA(240, 120, "120", "121", "122", "123", "124");
  FOVEA_WGMMA(256, 128, "128", "129", "130", "131", "132");
}
#undef FOVEA_WGMMA

#define FOVEA_WGMMA(n, registers, a0, a1, a2, a3, b, p, tb)                                    \
  if constexpr (N == n)                                                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" p                                          \
               ", 0;\n"                                                                        \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" FOVEA_R##registers \
               "}, {%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" b ", p, 1, 1, %" tb ";\n}"         \
               : FOVEA_D##registers                                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_tile.word), "r"(add), "n"(kB))
template <int N, Major B = Major::k>
__device__ inline void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], Descriptor b_tile,
                             bool accumulate) {
  static_assert(N >= 16 && N <= 256 && N % 16 == 0);
  const int add = accumulate ? 1 : 0;
  constexpr int kB = B == Major::mn ? 1 : 0;
  FOVEA_WGMMA(16, 8, "8", "9", "10", "11", "12", "13", "14");
  FOVEA_WGMMA(32, 16, "16", "17", "18", "19", "20", "21", "22");
  FOVEA_WGMMA(48, 24, "24", "25", "26", "27", "28", "29", "30");
  FOVEA_WGMMA(64, 32, "32", "33", "34", "35", "36", "37", "38");
  FOVEA_WGMMA(80, 40, "40", "41", "42", "43", "44", "45", "46");
  FOVEA_WGMMA(96, 48, "48", "49", "50", "51", "52", "53", "54");
  FOVEA_WGMMA(112, 56, "56", "57", "58", "59", "60", "61", "62");
  FOVEA_WGMMA(128, 64, "64", "65", "66", "67", "68", "69", "70");
  FOVEA_WGMMA(144, 72, "72", "73", "74", "75", "76", "77", "78");
  FOVEA_WGMMA(160, 80, "80", "81", "82", "83", "84", "85", "86");
  FOVEA_WGMMA(176, 88, "88", "89", "90", "91", "92", "93", "94");
  FOVEA_WGMMA(192, 96, "96", "97", "98", "99", "100", "101", "102");
  FOVEA_WGMMA(208, 104, "104", "105", "106", "107", "108", "109", "110");
  FOVEA_WGMMA(224, 112, "112", "113", "114", "115", "116", "117", "118");
  FOVEA_WGMMA(240, 120, "120", "121", "122", "123", "124", "125", "126");
  FOVEA_WGMMA(256, 128, "128", "129", "130", "131", "132", "133", "134");
}
#undef FOVEA_WGMMA
#undef FOVEA_R8
#undef FOVEA_D8
#undef FOVEA_R16
#undef FOVEA_D16
#undef FOVEA_R24
#undef FOVEA_D24
#undef FOVEA_R32
#undef FOVEA_D32
#undef FOVEA_R40
#undef FOVEA_D40
#undef FOVEA_R48
#undef FOVEA_D48
#undef FOVEA_R56
#undef FOVEA_D56
#undef FOVEA_R64
#undef FOVEA_D64
#undef FOVEA_R72
#undef FOVEA_D72
#undef FOVEA_R80
#undef FOVEA_D80
#undef FOVEA_R88
#undef FOVEA_D88
#undef FOVEA_R96
#undef FOVEA_D96
#undef FOVEA_R104
#undef FOVEA_D104
#undef FOVEA_R112
#undef FOVEA_D112
#undef FOVEA_R120
#undef FOVEA_D120
#undef FOVEA_R128
#undef FOVEA_D128

}  // namespace fovea::cuda
