// SPDX-License-Identifier: Apache-2.0
#pragma once
// Host entry points of one engine's three steps.

#include "attention/linear/cuda/gradient.cuh"
#include "attention/linear/cuda/prepare.cuh"
#include "attention/linear/cuda/walk.cuh"

namespace FOVEA_GPU {

constexpr size_t bytes_of(int floats) { return static_cast<size_t>(floats) * sizeof(float); }

// f with the element type.
template <typename F>
void with_chunk_type(Dtype dtype, F&& f) {
  dtype == Dtype::bf16 ? f(bf16{}) : f(float{});
}

template <bool kDelta>
struct ChunkSteps {
  static void prepare(const attention::ChunkCall& call, Stream stream) {
    with_chunk_type(call.dtype, [&](auto type) {
      using T = decltype(type);
      launch<chunk_prepare_kernel<T, kDelta>>(call.B * call.H * call.chunks, kTileThreads,
                                              bytes_of(prepare_floats(kDelta)), stream,
                                              chunk_arguments<T>(call));
    });
  }
  static void walk(const attention::ChunkCall& call, Stream stream) {
    with_chunk_type(call.dtype, [&](auto type) {
      using T = decltype(type);
      launch<chunk_walk_kernel<T, kDelta>>(call.B * call.H * panels_of(call.Dv), kTileThreads,
                                           bytes_of(walk_floats(call.Dk, 2)), stream,
                                           chunk_arguments<T>(call));
    });
  }
  static void walk_back(const attention::ChunkCall& call, Stream stream) {
    with_chunk_type(call.dtype, [&](auto type) {
      using T = decltype(type);
      launch<chunk_walk_back_kernel<T, kDelta>>(call.B * call.H * panels_of(call.Dv), kTileThreads,
                                                bytes_of(walk_floats(call.Dk, kDelta ? 3 : 2)),
                                                stream, chunk_arguments<T>(call));
    });
  }
  static void gradients(const attention::ChunkCall& call, Stream stream) {
    with_chunk_type(call.dtype, [&](auto type) {
      using T = decltype(type);
      launch<chunk_gradient_kernel<T, kDelta>>(call.B * call.H * call.chunks, kTileThreads,
                                               bytes_of(gradient_tiles(kDelta, call.G > 1) * kTile),
                                               stream, chunk_arguments<T>(call));
    });
  }
};

}  // namespace FOVEA_GPU
