// SPDX-License-Identifier: Apache-2.0
#pragma once
// Which rows and keys a forward block owns, for the f32 and the bf16 kernels alike.
//
// Rows. Plainly, row r of (b, h) is query r. Packed (few queries, grouped heads), the group's heads
// share one pass over their keys: row r is query r % N of head first + r / N.

#include "attention/score/cuda/arguments.cuh"

namespace FOVEA_GPU {

// Over the 4 lanes of a row.
__device__ inline float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
__device__ inline float quad_max(float x) {
  x = max(x, shuffle_xor(x, 1));
  return max(x, shuffle_xor(x, 2));
}

// Blocks: row tiles (last first: under a causal mask they see most) x splits x heads x B.
struct ForwardBlock {
  int b, h, hk, row0, rows, split;  // h: of row 0 when plain, the group's first when packed
  int tile0, tile1;                 // key tiles
};
struct RowPlace {
  int h, i;
};
template <typename T>
__device__ inline RowPlace place_of(const Arguments<T>& a, const ForwardBlock& block, int row) {
  row = smaller(row, block.rows - 1);
  if (!a.packed) return {block.h, row};
  return {block.h + row / a.N, row % a.N};
}

template <typename T>
__device__ inline ForwardBlock forward_block(const Arguments<T>& a, int tile_rows, int tile_keys) {
  const int heads = a.packed ? a.Hkv : a.H, rows = a.packed ? a.N * a.group() : a.N,
            tiles = (rows + tile_rows - 1) / tile_rows;
  int index = static_cast<int>(blockIdx.x);
  ForwardBlock block;
  const int bh = index % (a.B * heads);
  index /= a.B * heads;
  block.split = index % a.splits;
  block.row0 = (tiles - 1 - index / a.splits) * tile_rows;
  block.rows = rows;
  block.b = bh / heads;
  block.h = a.packed ? bh % heads * a.group() : bh % heads;
  block.hk = block.h / a.group();
  // Keys that positions leave to some row.
  int i0 = block.row0, i1 = smaller(block.row0 + tile_rows, rows) - 1;
  if (a.packed) {
    i0 = 0;
    i1 = a.N - 1;
  }
  const int first = key_limits(a, i0).first / tile_keys,
            last = (key_limits(a, i1).last + tile_keys - 1) / tile_keys;
  const int each = (larger(last - first, 0) + a.splits - 1) / a.splits;
  block.tile0 = smaller(first + block.split * each, last);
  block.tile1 = smaller(block.tile0 + each, last);
  return block;
}

template <typename T>
int forward_grid(const Arguments<T>& a, int tile_rows) {
  const int rows = a.packed ? a.N * (a.H / a.Hkv) : a.N;
  return (rows + tile_rows - 1) / tile_rows * a.splits * (a.packed ? a.Hkv : a.H) * a.B;
}

template <typename T>
__device__ inline Tile classify(const Arguments<T>& a, const ForwardBlock& block, int tile_rows,
                                int j0, int j1) {
  if (a.packed) return classify(a, block.b, block.h, block.h + a.group(), 0, a.N, j0, j1);
  return classify(a, block.b, block.h, block.h + 1, block.row0,
                  smaller(block.row0 + tile_rows, block.rows), j0, j1);
}

// The first tile from `tile` on that is not skipped, or block.tile1.
template <typename T>
__device__ inline int next_tile(const Arguments<T>& a, const ForwardBlock& block, int tile_rows,
                                int tile_keys, int tile, Tile& what) {
  for (; tile < block.tile1; ++tile) {
    what = classify(a, block, tile_rows, tile * tile_keys, smaller((tile + 1) * tile_keys, a.M));
    if (what != Tile::skip) break;
  }
  return tile;
}

// The blocks of backward: one owns a tile of keys (of queries) and walks the tiles of queries
// (keys) that see it. Keys' owners take all heads of their group, one after the other.
struct BackwardStep {
  int g, tile;  // head of the group, partner tile
  Tile what;
};
template <bool kKeys, typename T>
__device__ inline BackwardStep next_step(const Arguments<T>& a, int b, int head, int owner0,
                                         int tile_owners, int tile_partners, BackwardStep step) {
  const int partners = kKeys ? a.N : a.M, owners = kKeys ? a.M : a.N,
            tiles = (partners + tile_partners - 1) / tile_partners, groups = kKeys ? a.group() : 1;
  const int owner1 = smaller(owner0 + tile_owners, owners);
  for (; step.g < groups; ++step.g, step.tile = 0) {
    const int h = kKeys ? head * a.group() + step.g : head;
    for (; step.tile < tiles; ++step.tile) {
      const int first = step.tile * tile_partners, last = smaller(first + tile_partners, partners);
      step.what = kKeys ? classify(a, b, h, h + 1, first, last, owner0, owner1)
                        : classify(a, b, h, h + 1, owner0, owner1, first, last);
      if (step.what != Tile::skip) return step;
    }
  }
  return step;
}

}  // namespace FOVEA_GPU
