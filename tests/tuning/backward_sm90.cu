// SPDX-License-Identifier: Apache-2.0
// The Hopper backward with sections of any size, for tune_attention.
#include "attention/score/cuda/wgmma_backward.cuh"
#include "tests/tuning/variants.h"

namespace FOVEA_GPU {
namespace {

template <int kD>
void run(const attention::ScoreCall& c, int section, const std::function<void()>& mark,
         Stream stream) {
  backward_start<SoftmaxRule, kD>(c, stream);
  mark();
  wgmma_backward_of<SoftmaxRule, kD, false>(c, section > 0 ? section : heads_of_section(c, kD),
                                            stream);
  mark();
  backward_end<SoftmaxRule, kD>(c, stream);
  exact_rows<SoftmaxRule, bf16>(c, Exact::keys, stream);
  exact_rows<SoftmaxRule, bf16>(c, Exact::dq, stream);
}

}  // namespace

void backward_in_sections(const attention::ScoreCall& call, int section,
                          const std::function<void()>& mark, Stream stream) {
  if (attention::hopper_backward(call).width == 64)
    run<64>(call, section, mark, stream);
  else
    run<128>(call, section, mark, stream);
}

}  // namespace FOVEA_GPU
