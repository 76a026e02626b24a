// SPDX-License-Identifier: Apache-2.0
#include "nn/mixer.h"

namespace fovea::nn {

std::string Mixer::refuses(const SequencePart&) const { return "takes whole sequences only"; }

std::unique_ptr<MixerState> Mixer::make_state(int64_t, int64_t) {
  throw Error(concat(path(), ": this kind of mixer has no decode step"));
}

Tensor Mixer::decode(const Tensor&, MixerState&) {
  throw Error(concat(path(), ": this kind of mixer has no decode step"));
}

}  // namespace fovea::nn
