// SPDX-License-Identifier: Apache-2.0
#include "core/cuda/conformance_test.h"
#include "core/cuda/kernel.cuh"

namespace FOVEA_GPU {
namespace {

// ---- indices and meetings -----------------------------------------------------------------------

__global__ void indices(Global<int> out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned numbers[12] = {blockIdx.x,  blockIdx.y,  blockIdx.z, threadIdx.x,
                                threadIdx.y, threadIdx.z, blockDim.x, blockDim.y,
                                blockDim.z,  gridDim.x,   gridDim.y,  gridDim.z};
  const unsigned at = (block * blockDim.x * blockDim.y * blockDim.z + thread) * 12;
  for (unsigned i = 0; i < 12; ++i) out[at + i] = static_cast<int>(numbers[i]);
}

__global__ void block_barrier_kernel(Global<int> out, Global<const int> in) {
  FOVEA_SHARED(int, fixed, 1024);
  Shared<int> dynamic = dynamic_shared<int>();
  const int t = static_cast<int>(threadIdx.x), last = static_cast<int>(blockDim.x) - 1;
  fixed[t] = in[t];
  sync_block();
  dynamic[t] = fixed[last - t];
  sync_block();
  fixed[last - t] = dynamic[last - t];
  sync_block();
  out[t] = fixed[t];
}

__global__ void named_barrier_kernel(Global<int> out, Global<const int> in) {
  FOVEA_SHARED(int, s, 64);
  const int t = static_cast<int>(threadIdx.x);
  int sum = 0;
  for (int step = 0; step < 4; ++step) {
    if (t >= 64) {
      if (step > 0) sync_named(2, 128);
      s[t - 64] = in[64 * step + t - 64];
      arrive_named(1, 128);
    } else {
      sync_named(1, 128);
      sum = 2 * sum + s[63 - t];
      if (step < 3) arrive_named(2, 128);
    }
  }
  if (t < 64) out[t] = sum;
}

__global__ void warp_barrier_kernel(Global<int> out, Global<const int> in) {
  FOVEA_SHARED(int, s, 64);
  const int t = static_cast<int>(threadIdx.x);
  s[t] = in[t];
  sync_warp();
  out[t] = s[t ^ 31];
}

// ---- warp operations ----------------------------------------------------------------------------

template <typename T>
__global__ void shuffle_kernel(Global<T> out, Global<const T> in, Global<const int> operand,
                               fovea::Exchange how, unsigned mask) {
  const int lane = static_cast<int>(threadIdx.x);
  T got = T(-1);
  if (((mask >> lane) & 1u) != 0) {
    const T mine = in[lane];
    const int n = operand[lane];
    if (how == fovea::Exchange::index)
      got = shuffle(mine, n, mask);
    else if (how == fovea::Exchange::xor_)
      got = shuffle_xor(mine, n, mask);
    else if (how == fovea::Exchange::up)
      got = shuffle_up(mine, n, mask);
    else
      got = shuffle_down(mine, n, mask);
  }
  out[lane] = got;
}

__global__ void vote_kernel(Global<unsigned> out, Global<const int> in, fovea::Vote how,
                            unsigned mask) {
  const int lane = static_cast<int>(threadIdx.x);
  unsigned got = 0xdeadu;
  if (((mask >> lane) & 1u) != 0) {
    const bool mine = in[lane] != 0;
    if (how == fovea::Vote::ballot)
      got = ballot(mine, mask);
    else if (how == fovea::Vote::any)
      got = any(mine, mask) ? 1u : 0u;
    else
      got = all(mine, mask) ? 1u : 0u;
  }
  out[lane] = got;
}

template <typename T>
__global__ void reduce_kernel(Global<T> out, Global<const T> in, fovea::Reduction how,
                              unsigned mask) {
  const int lane = static_cast<int>(threadIdx.x);
  T got = 0;
  if (((mask >> lane) & 1u) != 0) {
    const T mine = in[lane];
    if (how == fovea::Reduction::add)
      got = reduce_add(mine, mask);
    else if (how == fovea::Reduction::max)
      got = reduce_max(mine, mask);
    else
      got = reduce_min(mine, mask);
  }
  out[lane] = got;
}

// ---- atomics ------------------------------------------------------------------------------------

__global__ void atomics_kernel(Global<int> out, Global<const int> in) {
  FOVEA_SHARED(int, s, 3);
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int mine = in[i];
  if (threadIdx.x == 0) {
    s[0] = 0;
    s[1] = -1000000;
    s[2] = -1;
  }
  sync_block();
  atomic_add(out + 0, mine);
  atomic_max(out + 1, mine);
  atomic_add(s + 0, mine);
  atomic_max(s + 1, mine);
  // Of the values that were there, and the one that stays, each comes once: their sum is known.
  const int before = atomic_exchange(s + 2, i);
  atomic_add(out + 4, before);
  sync_block();
  if (threadIdx.x == 0) {
    const int sum = s[0], most = s[1], stays = s[2];
    atomic_add(out + 2, sum);
    atomic_max(out + 3, most);
    atomic_add(out + 4, stays);
  }
  out[8 + atomic_add(out + 5, 1)] = i;
  const int replaced = atomic_exchange(out + 6, i);
  atomic_add(out + 7, replaced);
}

template <int N>
__global__ void add_vectors_kernel(Global<float> out, Global<const float> in) {
  atomic_add(out, load<N>(in + threadIdx.x * N));
}

__global__ void turns_kernel(Global<int> out) {
  if (threadIdx.x == 0) {
    const int mine = static_cast<int>(blockIdx.x);
    wait_until([=] { return load_acquire(out + 1) == mine; });
    const int before = out[0];
    out[0] = 3 * before + mine;
    fence_device();
    store_release(out + 1, mine + 1);
  }
}

// ---- arithmetic ---------------------------------------------------------------------------------

__global__ void unary_kernel(Global<float> out, Global<const float> in, fovea::Unary how) {
  const int i = static_cast<int>(threadIdx.x);
  const float x = in[i];
  const auto bits = std::bit_cast<uint32_t>(x);
  float y = 0.0f;
  if (how == fovea::Unary::exp2)
    y = exp2_fast(x);
  else if (how == fovea::Unary::reciprocal)
    y = reciprocal_fast(x);
  else if (how == fovea::Unary::rsqrt)
    y = rsqrt_fast(x);
  else if (how == fovea::Unary::tf32)
    y = std::bit_cast<float>(to_tf32(x));
  else if (how == fovea::Unary::low)
    y = low_half(bits);
  else
    y = high_half(bits);
  out[i] = y;
}

__global__ void fma_kernel(Global<float> out, Global<const float> a, Global<const float> b,
                           Global<const float> c) {
  const int i = static_cast<int>(threadIdx.x);
  out[3 * i] = fma(a[i], b[i], c[i]);
  out[3 * i + 1] = max(a[i], b[i]);
  out[3 * i + 2] = min(a[i], b[i]);
}

__global__ void pack_kernel(Global<uint32_t> out, Global<const float> low,
                            Global<const float> high) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = pack(low[i], high[i]);
}

// ---- copies, matrices ---------------------------------------------------------------------------

__global__ void copy_async_kernel(Global<float> out, Global<const float> in, int valid) {
  FOVEA_SHARED(float, s, 384);
  const int t = static_cast<int>(threadIdx.x), other = 31 - t;
  for (int group = 0; group < 3; ++group) {
    copy_async(s + (group * 128 + t * 4), in + (group * 128 + t * 4), valid);
    commit_copies();
  }
  const auto show = [&](int group) {
    sync_block();
    const Vec<float, 4> got = load<4>(s + (group * 128 + other * 4));
    store(out + (group * 128 + other * 4), got);
  };
  wait_copies<2>();
  show(0);
  wait_copies<1>();
  show(1);
  wait_copies<0>();
  show(2);
}

constexpr int kPitch = 24;  // of a tile's rows

__device__ inline int matrix_row(int lane) {
  return (lane % 8 + lane / 8 % 2 * 8) * kPitch + lane / 16 * 8;
}

__global__ void load_matrices_kernel(Global<uint32_t> out, Global<const uint16_t> in,
                                     bool transposed) {
  FOVEA_SHARED(uint16_t, tile, 16 * kPitch);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 16 * kPitch; i += 32) tile[i] = in[i];
  sync_block();
  uint32_t r[4];
  if (transposed)
    load_matrices_transposed(r, tile + matrix_row(lane));
  else
    load_matrices(r, tile + matrix_row(lane));
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = r[i];
}

__global__ void store_matrices_kernel(Global<uint16_t> out, Global<const uint32_t> in) {
  FOVEA_SHARED(uint16_t, tile, 16 * kPitch);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 16 * kPitch; i += 32) tile[i] = uint16_t{7};
  sync_block();
  uint32_t r[4];
  for (int i = 0; i < 4; ++i) r[i] = in[lane * 4 + i];
  store_matrices(tile + matrix_row(lane), r);
  sync_block();
  for (int i = lane; i < 16 * kPitch; i += 32) {
    const uint16_t value = tile[i];
    out[i] = value;
  }
}

__global__ void transpose_kernel(Global<uint32_t> out, Global<const uint32_t> in) {
  out[threadIdx.x] = transpose_matrix(in[threadIdx.x]);
}

__global__ void mma_kernel(Global<float> out, Global<const uint32_t> a_in,
                           Global<const uint32_t> b_in, bool tf32) {
  const int lane = static_cast<int>(threadIdx.x);
  float d[4];
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) {
    d[i] = out[lane * 4 + i];
    a[i] = a_in[lane * 4 + i];
  }
  for (int i = 0; i < 2; ++i) b[i] = b_in[lane * 2 + i];
  if (tf32)
    mma_tf32(d, a, b);
  else
    mma_bf16(d, a, b);
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = d[i];
}

template <int N>
__global__ void vectors_kernel(Global<uint8_t> out, Global<const uint8_t> in) {
  Shared<uint8_t> s = dynamic_shared<uint8_t>(256);
  const int at = static_cast<int>(threadIdx.x) * N, other = 256 - N - at;
  store(s + at, load<N>(in + at));
  sync_block();
  Vec<uint8_t, N> v = load<N>(s + other);
  for (int i = 0; i < N / 2; ++i) {
    const uint8_t swapped = v[i];
    v[i] = v[N - 1 - i];
    v[N - 1 - i] = swapped;
  }
  store(out + at, v);
}

}  // namespace

// ---- launches -----------------------------------------------------------------------------------

void conform_indices(int* out, const fovea::LaunchShape& s, Stream stream) {
  launch<indices>(dim3(s.grid[0], s.grid[1], s.grid[2]), dim3(s.block[0], s.block[1], s.block[2]),
                  0, stream, out);
}
void conform_block_barrier(int* out, const int* in, int threads, Stream stream) {
  launch<block_barrier_kernel>(1, threads, 4096, stream, out, in);
}
void conform_named_barrier(int* out, const int* in, Stream stream) {
  launch<named_barrier_kernel>(1, 128, 0, stream, out, in);
}
void conform_warp_barrier(int* out, const int* in, Stream stream) {
  launch<warp_barrier_kernel>(1, 64, 0, stream, out, in);
}
template <typename T>
void conform_shuffle(T* out, const T* in, const int* operand, fovea::Exchange how, unsigned mask,
                     Stream stream) {
  launch<shuffle_kernel<T>>(1, 32, 0, stream, out, in, operand, how, mask);
}
template void conform_shuffle(int32_t*, const int32_t*, const int*, fovea::Exchange, unsigned,
                              Stream);
template void conform_shuffle(float*, const float*, const int*, fovea::Exchange, unsigned, Stream);
template void conform_shuffle(int64_t*, const int64_t*, const int*, fovea::Exchange, unsigned,
                              Stream);
void conform_vote(unsigned* out, const int* in, fovea::Vote how, unsigned mask, Stream stream) {
  launch<vote_kernel>(1, 32, 0, stream, out, in, how, mask);
}
template <typename T>
void conform_reduce(T* out, const T* in, fovea::Reduction how, unsigned mask, Stream stream) {
  launch<reduce_kernel<T>>(1, 32, 0, stream, out, in, how, mask);
}
template void conform_reduce(int32_t*, const int32_t*, fovea::Reduction, unsigned, Stream);
template void conform_reduce(uint32_t*, const uint32_t*, fovea::Reduction, unsigned, Stream);
void conform_atomics(int* out, const int* in, int blocks, int threads, Stream stream) {
  launch<atomics_kernel>(blocks, threads, 0, stream, out, in);
}
void conform_add_vectors(float* out, const float* in, int blocks, int threads, int width,
                         Stream stream) {
  if (width == 2)
    launch<add_vectors_kernel<2>>(blocks, threads, 0, stream, out, in);
  else
    launch<add_vectors_kernel<4>>(blocks, threads, 0, stream, out, in);
}
void conform_turns(int* out, int blocks, Stream stream) {
  launch<turns_kernel>(blocks, 32, 0, stream, out);
}
void conform_unary(float* out, const float* in, fovea::Unary how, int n, Stream stream) {
  launch<unary_kernel>(1, n, 0, stream, out, in, how);
}
void conform_fma(float* out, const float* a, const float* b, const float* c, int n, Stream stream) {
  launch<fma_kernel>(1, n, 0, stream, out, a, b, c);
}
void conform_pack(uint32_t* out, const float* low, const float* high, int n, Stream stream) {
  launch<pack_kernel>(1, n, 0, stream, out, low, high);
}
void conform_copy_async(float* out, const float* in, int valid, Stream stream) {
  launch<copy_async_kernel>(1, 32, 0, stream, out, in, valid);
}
void conform_load_matrices(uint32_t* out, const uint16_t* tile, bool transposed, Stream stream) {
  launch<load_matrices_kernel>(1, 32, 0, stream, out, tile, transposed);
}
void conform_store_matrices(uint16_t* tile, const uint32_t* in, Stream stream) {
  launch<store_matrices_kernel>(1, 32, 0, stream, tile, in);
}
void conform_transpose(uint32_t* out, const uint32_t* in, Stream stream) {
  launch<transpose_kernel>(1, 32, 0, stream, out, in);
}
void conform_mma(float* d, const uint32_t* a, const uint32_t* b, bool tf32, Stream stream) {
  launch<mma_kernel>(1, 32, 0, stream, d, a, b, tf32);
}
void conform_vectors(uint8_t* out, const uint8_t* in, int width, Stream stream) {
  switch (width) {
    case 2:
      return launch<vectors_kernel<2>>(1, 128, 512, stream, out, in);
    case 4:
      return launch<vectors_kernel<4>>(1, 64, 512, stream, out, in);
    case 8:
      return launch<vectors_kernel<8>>(1, 32, 512, stream, out, in);
    default:
      return launch<vectors_kernel<16>>(1, 16, 512, stream, out, in);
  }
}

}  // namespace FOVEA_GPU
