// SPDX-License-Identifier: Apache-2.0
#include "core/interpreter/intrinsics.h"

namespace fovea::interpreted {

void fault_global(const Allocation* block, const void* at, size_t bytes, const char* verb,
                  const Where& where) {
  if (at == nullptr) fault(concat(verb, " through a null pointer"), where);
  if (block == nullptr)
    fault(concat(verb, " through a pointer that is not to device memory"), where);
  const auto offset = static_cast<const std::byte*>(at) - block->begin;
  const std::string place = concat("device memory, byte ", offset, " to ",
                                   offset + static_cast<ptrdiff_t>(bytes), " of ", block->bytes);
  if (offset < 0 || static_cast<size_t>(offset) + bytes > block->bytes)
    fault(concat(verb, " outside ", place), where);
  if (std::string_view(verb) == "unwritten")
    fault(concat("reads what was never written: ", place), where);
  fault(concat(verb, ' ', bytes, " bytes that are not aligned: ", place), where);
}

void copy_async(Span& span, std::byte* to, const Allocation* block, const std::byte* from,
                int valid, const Where& where) {
  if (valid < 0 || valid > 16) fault(concat("copy_async: ", valid, " bytes of 16"), where);
  const auto bytes = static_cast<size_t>(valid);
  if (valid > 0) check_written(block, from, bytes, 16, where);
  check_shared_write(span, to, 16, where, Write::copy_async);
  Thread& t = thread();
  t.copies.push_back({&span, to, from, bytes, 16 - bytes, t.copy_group});
}

void load_matrices(uint32_t (&r)[4], Span& span, const std::byte* row, bool transposed,
                   const Where& where) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    fault("load_matrices: the row is not aligned to 16 bytes", where);
  check_shared_read(span, row, 16, where);
  struct Lane {
    const std::byte* row;
    uint32_t (&r)[4];
  } mine{row, r};
  warp_operation(
      transposed ? "load_matrices_transposed" : "load_matrices", kAllLanes, mine,
      [transposed](Lane* const* lanes) {
        for (int m = 0; m < 4; ++m) {
          uint16_t matrix[8][8];
          for (int i = 0; i < 8; ++i) std::memcpy(matrix[i], lanes[8 * m + i]->row, 16);
          for (int lane = 0; lane < kWarp; ++lane) {
            const int g = lane / 4, q = lane % 4;
            const uint32_t low = transposed ? matrix[2 * q][g] : matrix[g][2 * q],
                           high = transposed ? matrix[2 * q + 1][g] : matrix[g][2 * q + 1];
            lanes[lane]->r[m] = low | (high << 16);
          }
        }
      },
      where);
}

void store_matrices(Span& span, std::byte* row, const uint32_t (&r)[4], const Where& where) {
  check_shared_write(span, row, 16, where);
  struct Lane {
    std::byte* row;
    const uint32_t (&r)[4];
  } mine{row, r};
  warp_operation(
      "store_matrices", kAllLanes, mine,
      [](Lane* const* lanes) {
        for (int m = 0; m < 4; ++m)
          for (int lane = 0; lane < kWarp; ++lane)
            std::memcpy(lanes[8 * m + lane / 4]->row + lane % 4 * 4, &lanes[lane]->r[m], 4);
      },
      where);
}

uint32_t transpose_matrix(uint32_t pair, Where where) {
  warp_operation(
      "transpose_matrix", kAllLanes, pair,
      [](uint32_t* const* lanes) {
        uint32_t matrix[8][8];
        for (int lane = 0; lane < kWarp; ++lane) {
          uint32_t* to = &matrix[lane / 4][lane % 4 * 2];
          to[0] = *lanes[lane] & 0xffffu;
          to[1] = *lanes[lane] >> 16;
        }
        for (int lane = 0; lane < kWarp; ++lane)
          *lanes[lane] = matrix[lane % 4 * 2][lane / 4] | matrix[lane % 4 * 2 + 1][lane / 4] << 16;
      },
      where);
  return pair;
}

namespace {

struct Fragments {
  float (&d)[4];
  const uint32_t (&a)[4];
  const uint32_t (&b)[2];
};

// d += a b of matrices spelled out, kDepth deep.
template <int kDepth>
void multiply(Fragments* const* lanes, const float (&a)[16][kDepth], const float (&b)[kDepth][8]) {
  float d[16][8] = {};
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < kDepth; ++k)
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; ++i) lanes[lane]->d[i] += d[g + 8 * (i >> 1)][2 * q + (i & 1)];
  }
}

}  // namespace

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
  Fragments mine{d, a, b};
  warp_operation(
      "mma_bf16", kAllLanes, mine,
      [](Fragments* const* lanes) {
        float left[16][16], right[16][8];
        for (int lane = 0; lane < kWarp; ++lane) {
          const int g = lane / 4, q = lane % 4;
          for (int r = 0; r < 4; ++r) {
            float* to = &left[g + 8 * (r & 1)][2 * q + 8 * (r >> 1)];
            to[0] = low_half(lanes[lane]->a[r]);
            to[1] = high_half(lanes[lane]->a[r]);
          }
          for (int r = 0; r < 2; ++r) {
            right[2 * q + 8 * r][g] = low_half(lanes[lane]->b[r]);
            right[2 * q + 8 * r + 1][g] = high_half(lanes[lane]->b[r]);
          }
        }
        multiply<16>(lanes, left, right);
      },
      where);
}

void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
  Fragments mine{d, a, b};
  warp_operation(
      "mma_tf32", kAllLanes, mine,
      [](Fragments* const* lanes) {
        float left[16][8], right[8][8];
        const auto value = [](uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); };
        for (int lane = 0; lane < kWarp; ++lane) {
          const int g = lane / 4, q = lane % 4;
          for (int r = 0; r < 4; ++r)
            left[g + 8 * (r & 1)][q + 4 * (r >> 1)] = value(lanes[lane]->a[r]);
          for (int r = 0; r < 2; ++r) right[q + 4 * r][g] = value(lanes[lane]->b[r]);
        }
        multiply<8>(lanes, left, right);
      },
      where);
}

}  // namespace fovea::interpreted
