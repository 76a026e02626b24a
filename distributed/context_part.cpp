// SPDX-License-Identifier: Apache-2.0
#include "distributed/context_part.h"

namespace fovea::distributed {
namespace {

std::vector<nn::SequencePart::Run> runs_of(const Mesh& mesh, Order order, int64_t N) {
  const Layout layout(order, N, mesh.sizes().ring, mesh.sizes().ulysses);
  std::vector<nn::SequencePart::Run> runs;
  for (const auto& [place, count] : layout.rank(mesh.place().ring, mesh.place().ulysses))
    runs.push_back({place.base, place.stride, count});
  return runs;
}

}  // namespace

ContextPart::ContextPart(const Mesh& mesh, Order order, int64_t N, const ContextOptions& options)
    : ScoresOverParts(N, runs_of(mesh, order, N)),
      place_(mesh.place()),
      attention_(mesh, order, N, options) {}

Tensor ContextPart::take(const Tensor& whole, int axis) const {
  return attention_.layout().take(whole, axis, place_.ring, place_.ulysses);
}

Variable ContextPart::attend(const ScoreRule& rule, const Variable& q, const Variable& k,
                             const Variable& v, const Variable& sink, const Tensor& slopes,
                             const attention::Mask& mask,
                             const attention::ScoreOptions& options) const {
  return attention_(rule, q, k, v, sink, slopes, mask, options);
}

std::string ContextPart::refuses(int64_t heads, int64_t kv_heads) const {
  const int64_t U = attention_.layout().ulysses();
  if (heads % U != 0) return concat("has ", heads, " heads, which ulysses ", U, " does not divide");
  if (kv_heads % U != 0 && U % kv_heads != 0)
    return concat("has ", kv_heads, " key heads, which neither divide nor are divided by ulysses ",
                  U);
  return "";
}

}  // namespace fovea::distributed
