// SPDX-License-Identifier: Apache-2.0
// Tiles of the Hopper forward that tune_attention compares, a line each: what the engine uses, then
// ForwardTiles by D, keys of a tile, consumers, stages, and whether consumers take turns.
#include "attention/score/cuda/wgmma_forward.cuh"
#include "tests/tuning/variants.h"

FOVEA_GPU_DECLARE(void softmax_forward_sm90(const attention::ScoreCall& call, Stream stream);)

namespace FOVEA_GPU {
namespace {

using attention::ForwardVariant;

ForwardVariant engines(int D) { return {attention::kEngines, D, softmax_forward_sm90}; }

template <int D, int Keys, int Consumers, int Stages, bool Turns>
ForwardVariant tiles() {
  return {concat(Keys, " keys, ", Consumers, " consumers, ", Stages, " stages",
                 Turns ? ", turns" : ", no turns"),
          D, wgmma_forward_of<SoftmaxRule, ForwardTiles<D, Keys, Consumers, Stages, Turns, true>>};
}

}  // namespace

std::vector<ForwardVariant> forward_variants() {
  return {
      engines(64),
      tiles<64, 128, 2, 2, true>(),
      tiles<64, 128, 2, 2, false>(),
      tiles<64, 128, 2, 4, true>(),
      tiles<64, 192, 2, 2, true>(),
      tiles<64, 128, 3, 2, true>(),
      tiles<64, 128, 3, 4, true>(),
      tiles<64, 96, 3, 4, true>(),
      engines(128),
      tiles<128, 128, 2, 2, true>(),
      tiles<128, 128, 2, 2, false>(),
      tiles<128, 128, 2, 3, true>(),
      tiles<128, 144, 2, 2, true>(),
      tiles<128, 160, 2, 2, true>(),
      tiles<128, 176, 2, 2, true>(),
      tiles<128, 176, 2, 2, false>(),
      engines(256),
      tiles<256, 64, 2, 2, true>(),
      tiles<256, 64, 2, 2, false>(),
      tiles<256, 80, 2, 2, true>(),
  };
}

}  // namespace FOVEA_GPU
