// SPDX-License-Identifier: Apache-2.0
#pragma once
// Counter-based randomness: a value is f(seed, purpose, tensor, step, index) and never depends on
// call order, on the number of threads or ranks, or on the device. Philox4x32-10 (Salmon et al., SC
// 2011, section 3.3).

#include <array>
#include <cstdint>
#include <string_view>

#include "core/dtype.h"
#include "core/tensor.h"

namespace fovea {

// 64-bit FNV-1a of a text, continued from `hash`.
constexpr uint64_t fnv1a(std::string_view text, uint64_t hash = 0xcbf29ce484222325ull) {
  for (char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ull;
  return hash;
}

// Finaliser of MurmurHash3: spreads the bits of a combination of words.
FOVEA_HD constexpr uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return x ^ (x >> 33);
}

// One stream of random numbers: which seed, what for ("init", "dropout", "shuffle"), whose
// ("blocks.3.mlp"), at which step. Element `index` of the stream is philox(key, index).
struct RngKey {
  uint64_t key = 0;
  uint64_t high = 0;  // upper half of the 128-bit counter: mix64(name ^ mix64(step))
  uint64_t name = 0;  // of the tensor, hashed
  // In device memory, where a kernel reads the step when it runs (core/graph.h): mix64(step). Null:
  // `high` holds.
  const uint64_t* step_at = nullptr;

  RngKey() = default;
  constexpr RngKey(uint64_t seed, std::string_view purpose, std::string_view tensor,
                   uint64_t step = 0)
      : key(mix64(seed ^ mix64(fnv1a(purpose)))), name(fnv1a(tensor)) {
    high = mix64(name ^ mix64(step));
  }
};

// Four 32-bit words of block `index`.
FOVEA_HD inline std::array<uint32_t, 4> philox(const RngKey& rng, uint64_t index) {
  uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
  uint32_t c2 = static_cast<uint32_t>(rng.high), c3 = static_cast<uint32_t>(rng.high >> 32);
  uint32_t k0 = static_cast<uint32_t>(rng.key), k1 = static_cast<uint32_t>(rng.key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// Word `index` of the stream: word index % 4 of block index / 4.
FOVEA_HD inline uint32_t random_word(const RngKey& rng, uint64_t index) {
  return philox(rng, index >> 2)[index & 3];
}

// In [0, 1), 24 bits.
FOVEA_HD inline float to_uniform(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

// Uniform in [0, n); the bias of the 64-bit product is below n / 2^64.
FOVEA_HD inline uint64_t random_below(const RngKey& rng, uint64_t index, uint64_t n) {
  const auto w = philox(rng, index);
  const uint64_t word = (uint64_t{w[0]} << 32) | w[1];
  return static_cast<uint64_t>((static_cast<unsigned __int128>(word) * n) >> 64);
}

// A dropped element has random_word < threshold: rate 0 drops none.
FOVEA_HD inline uint32_t dropout_threshold(double rate) {
  const double scaled = rate * 4294967296.0;
  return scaled >= 4294967295.0 ? 0xffffffffu : static_cast<uint32_t>(scaled);
}

// Fills by row-major element index, for any floating dtype (values are computed in f64, then
// rounded).
void fill_uniform(const Tensor& out, const RngKey& rng, double low = 0.0, double high = 1.0);
// Box-Muller on pairs of words.
void fill_normal(const Tensor& out, const RngKey& rng, double mean = 0.0, double deviation = 1.0);

}  // namespace fovea
