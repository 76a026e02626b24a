// SPDX-License-Identifier: Apache-2.0
#pragma once
// What one training step of a GPT costs a rank: memory, bytes, time. Formulas alone; nothing is
// run. Symbols: B samples of a forward pass of the rank, N tokens of a sample, n = N/(R U) of them
// the rank's, T = B n rows; C channels, F hidden, H and G query and key heads of D, V vocabulary, L
// layers, e bytes of an activation, f = 4 of a sum.

#include "distributed/layout.h"
#include "distributed/mesh.h"
#include "train/plan/machine.h"

namespace fovea::train {

// How keys reach queries that another group of the ring holds.
enum class Travel : uint8_t {
  none,    // a ring of one
  ring,    // ContextAttention, Exchange::ring
  gather,  // and Exchange::gather, a key head at a time
  state    // the layer is linear attention and hands its state on (distributed/state.h, gather)
};
std::string_view name(Travel travel);

// One way to divide the work.
struct Division {
  distributed::MeshSizes mesh;
  Travel travel = Travel::none;
  int64_t window = 0;  // of Travel::ring: ranks of an inner ring; 0: one ring of all
  distributed::Order order = distributed::Order::contiguous;
  bool zero = false;                 // optimizer state and averages over all ranks
  int64_t batch = 1;                 // samples of a step, over all ranks
  int64_t micro_batch = 0;           // of a rank's forward pass; 0: all of its samples
  int64_t bucket_bytes = 8 << 20;    // gradients that are summed at once
  int64_t state_bytes = 8;           // of the optimizer, a parameter
  int64_t state_bytes_matrices = 8;  // and of a block's matrices
  int64_t average_bytes = 0;         // 4 with an average of the weights

  int64_t ranks() const { return mesh.ranks(); }
  int64_t samples() const { return (batch + mesh.data - 1) / mesh.data; }  // of a rank
  int64_t pass() const { return micro_batch > 0 ? std::min(micro_batch, samples()) : samples(); }
  int64_t passes() const { return (samples() + pass() - 1) / pass(); }
};

// Bytes at the peak of a step.
struct MemoryCost {
  double parameters = 0, gradients = 0, optimizer = 0, averages = 0;
  double activations = 0;  // what backward needs of the blocks, and casts of their weights
  double logits = 0;       // with their gradient
  double exchange = 0;     // keys on their way, sums, buffers of all-to-alls and of gradients
  double total() const {
    return parameters + gradients + optimizer + averages + activations + logits + exchange;
  }
};
MemoryCost memory_cost(const GptSizes& z, const Division& d);
// Of a block's forward for T rows: what it saves for backward.
double block_activations(const GptSizes& z, double rows);

// Bytes that one rank sends for one attention layer and one forward pass of B samples, and for its
// backward: docs/distributed.md's table. By what they are: on the ring (keys and values; f32 sums),
// in all-to-alls.
struct SentBytes {
  double ring_forward = 0, ring_backward = 0, ring_sums = 0, ulysses_forward = 0,
         ulysses_backward = 0;
};
SentBytes sent_bytes(const GptSizes& z, const Division& d, int64_t B);
// And for the sum of gradients (and ZeRO-1's weights) of a step.
double gradient_bytes(const GptSizes& z, const Division& d);

// Allowed pairs of a sample and head; and their balance over the ring, from a sequence of at most
// some thousand tokens whose mask shrinks along.
double allowed_pairs(const GptSizes& z);
// Of n tokens that stand for all.
distributed::Layout layout_of(const GptSizes& z, const Division& d, int64_t n);
distributed::Balance balance_of(const GptSizes& z, const Division& d);

// Seconds of a step. Communication is what is not hidden behind computing; `hidden` the rest.
struct TimeCost {
  double products = 0;
  double attention = 0;     // with the wait for the rank that has most pairs
  double balance = 1;       // of which attention is this times the mean
  double memory_bound = 0;  // norms, activations, loss, casts, optimizer: bytes over bandwidth
  double ring = 0, ulysses = 0, gradients = 0;  // exposed
  double hidden = 0;
  double total() const { return products + attention + memory_bound + ring + ulysses + gradients; }
  // Of a step that neither waits nor sends.
  double efficiency() const { return (products + attention / balance + memory_bound) / total(); }
  // The share of communication that computing hides; 1 where there is none.
  double overlap() const {
    const double exposed = ring + ulysses + gradients;
    return exposed + hidden > 0 ? hidden / (exposed + hidden) : 1.0;
  }
};
// balance: of balance_of(); pairs: of allowed_pairs().
TimeCost time_cost(const GptSizes& z, const Division& d, const Machine& m, double pairs,
                   const distributed::Balance& balance);

}  // namespace fovea::train
