// SPDX-License-Identifier: Apache-2.0
#include "distributed/context_attention.h"

#include "autograd/ops.h"
#include "distributed/agreement.h"
#include "distributed/context_call.h"
#include "distributed/ulysses.h"

namespace fovea::distributed {

std::vector<Piece> ContextCall::pieces(int group) const {
  std::vector<Piece> all;
  int64_t at = 0;
  for (const auto& [place, count] : layout.group(group)) {
    all.push_back({place, at, count});
    at += count;
  }
  return all;
}

bool ContextCall::sees(int64_t batch, int64_t count, const Piece& query, const Piece& key) const {
  const attention::Mask pair =
      host_mask.part(places(query.place, key.place), count, query.count, key.count);
  const bool by_head = pair.parts().blocks.defined(),
             by_sample = pair.parts().query_documents.defined() || pair.parts().ranges.defined();
  for (int64_t b = 0; b < (by_sample ? batch : 1); ++b) {
    for (int64_t h = 0; h < (by_head ? count : 1); ++h) {
      if (pair.classify(b, h, 0, query.count, 0, key.count, query.count, key.count) !=
          attention::TileClass::skip)
        return true;
    }
  }
  return false;
}

ContextAttention::ContextAttention(const Communicator& ring, const Communicator& ulysses,
                                   const Layout& layout, const ContextOptions& options)
    : ring_(ring),
      ulysses_(ulysses),
      layout_(layout),
      options_(options),
      agreed_(std::make_shared<bool>(false)) {
  const int64_t R = ring.size(), w = options.window;
  FOVEA_CHECK(layout.ring() == R && layout.ulysses() == ulysses.size(),
              "context attention: the layout is for a ring of ", layout.ring(), " groups of ",
              layout.ulysses(), " ranks, but there are ", R, " and ", ulysses.size());
  FOVEA_CHECK(w >= 0 && (w == 0 || R % w == 0), "context attention: a window of ", w,
              " ranks does not divide the ring of ", R, "; 0 is one ring of all");
  FOVEA_CHECK(w == 0 || options.exchange == Exchange::ring, "context attention: a window of ", w,
              " ranks is the ring's; with exchange gather it must be 0");
  FOVEA_CHECK(options.heads_per_gather >= 1, "context attention: ", options.heads_per_gather,
              " heads per gather; expected at least 1");
  FOVEA_CHECK(options.block >= 0, "context attention: blocks of ", options.block, " queries");
  FOVEA_CHECK(options.block == 0 ||
                  (options.exchange == Exchange::gather && layout.order() == Order::contiguous &&
                   ulysses.size() == 1 && layout.tokens() % (R * options.block) == 0),
              "context attention: the same bits on any ring (block ", options.block,
              ") need exchange gather, contiguous order, ulysses 1 and a multiple of ring x block "
              "tokens, found ",
              options.exchange == Exchange::gather ? "gather" : "ring", ", ", name(layout.order()),
              ", ", ulysses.size(), " and ", layout.tokens(), " over ", R);
  std::string text = concat(name(layout.order()), ' ', layout.tokens(), ' ', R, ' ', ulysses.size(),
                            ' ', static_cast<int>(options.exchange), ' ', w, ' ',
                            options.heads_per_gather, ' ', options.block);
  for (int r = 0; layout.order() == Order::dispatched && r < R; ++r)
    for (const auto& [place, count] : layout.group(r))
      text += concat(' ', r, ' ', place.base, ' ', count);
  const uint64_t hash = hash_of(text);
  for (const Communicator* comm : {&ring_, &ulysses_})
    if (comm->size() > 1) check_agree(*comm, "context attention: layout and options", hash);
}

void ContextAttention::check(const Variable& q, const Variable& k, const Variable& v,
                             const Variable& sink, const Tensor& slopes,
                             const attention::Mask& mask) const {
  FOVEA_CHECK(q.shape().rank() == 4 && k.shape().rank() == 4 && v.shape().rank() == 4,
              "context attention: expected q, k, v [B, H, n, D], found ", q.shape(), ", ",
              k.shape(), ", ", v.shape());
  const int64_t B = q.dim(0), H = q.dim(1), G = k.dim(1), U = ulysses_.size(),
                n = layout_.shards(ring_.rank()).length(ulysses_.rank());
  FOVEA_CHECK(q.dim(2) == n && k.dim(2) == n && v.dim(2) == n, "context attention: q ", q.shape(),
              ", k ", k.shape(), " and v ", v.shape(), ", but rank ", ring_.rank(), " of ring ",
              ring_.size(), ", ", ulysses_.rank(), " of ulysses ", U, ", has ", n, " of the ",
              layout_.tokens(), " tokens");
  FOVEA_CHECK(G >= 1 && H % G == 0 && v.dim(1) == G, "context attention: ", H,
              " query heads, keys of ", G, " heads and values of ", v.dim(1));
  FOVEA_CHECK(H % U == 0, "context attention: ", H, " heads are not divided by ulysses ", U,
              "; a ring takes any number of heads");
  FOVEA_CHECK(G % U == 0 || U % G == 0, "context attention: ", G,
              " key heads neither divide nor are divided by ulysses ", U,
              "; a ring takes any number of heads");
  FOVEA_CHECK(!sink.defined() || sink.shape() == Shape{H}, "context attention: sinks are ",
              sink.shape(), "; expected [", H, ']');
  FOVEA_CHECK(!slopes.defined() || slopes.shape() == Shape{H},
              "context attention: ALiBi slopes are ", slopes.shape(), "; expected [", H, ']');
  mask.validate(B, H, layout_.tokens(), layout_.tokens());
  const int64_t widest = 256;
  FOVEA_CHECK(q.value().device().is_cpu() || options_.exchange == Exchange::gather ||
                  ring_.size() == 1 || (q.dim(3) <= widest && v.dim(3) <= widest),
              "context attention: head dims ", q.dim(3), " and ", v.dim(3), " on device ",
              q.value().device(), " have no kernel for keys in parts; exchange gather or ulysses ",
              "take them");
}

namespace {

// Of what all ranks of a call must hold alike.
uint64_t hash_of_call(const Variable& q, const Variable& k, const Variable& v,
                      const attention::Mask& mask, const attention::ScoreOptions& o) {
  const attention::Mask::Parts parts = mask.parts();
  uint64_t hash =
      hash_of(concat(q.dim(0), ' ', q.dim(1), ' ', q.dim(3), ' ', k.dim(1), ' ', v.dim(3), ' ',
                     q.value().dtype(), ' ', parts.causal, ' ', parts.left, ' ', parts.right, ' ',
                     parts.prefix, ' ', parts.query_block, ' ', parts.key_block, ' ', o.scale, ' ',
                     o.softcap, ' ', static_cast<int>(o.rope), ' ', o.rope_base, ' ', o.dropout,
                     ' ', o.rng.key, ' ', o.rng.high, ' ', o.first_sample));
  for (const Tensor* t :
       {&parts.query_documents, &parts.key_documents, &parts.blocks, &parts.ranges}) {
    hash = hash * 31 + (t->defined() ? 1 : 0);
    if (t->defined() && t->numel() > 0)
      hash = hash * 31 +
             hash_of({static_cast<const char*>(t->raw()), static_cast<size_t>(t->bytes())});
  }
  return hash;
}

}  // namespace

Variable ContextAttention::operator()(const ScoreRule& rule, const Variable& q, const Variable& k,
                                      const Variable& v, const Variable& sink, const Tensor& slopes,
                                      const attention::Mask& mask,
                                      const attention::ScoreOptions& options) const {
  check(q, k, v, sink, slopes, mask);
  const attention::Mask host_mask = mask.to(kCpu);
  if (!*agreed_) {
    const uint64_t hash = hash_of_call(q, k, v, host_mask, options);
    for (const Communicator* comm : {&ring_, &ulysses_})
      if (comm->size() > 1) check_agree(*comm, "context attention: sizes, mask and options", hash);
    *agreed_ = true;
  }
  const int64_t H = q.dim(1), U = ulysses_.size(), h = H / U, first = ulysses_.rank() * h;
  const ContextCall call{rule,
                         slopes.defined() ? slopes.slice(0, first, first + h) : slopes,
                         mask.to(q.value().device()),
                         host_mask,
                         options,
                         layout_,
                         options_,
                         ring_,
                         first,
                         H};
  const auto attend = [&](const Variable& queries, const Variable& keys, const Variable& values,
                          const Variable& sinks) {
    return options_.exchange == Exchange::gather && (ring_.size() > 1 || options_.block > 0)
               ? gather_attention(call, queries, keys, values, sinks)
               : ring_attention(call, queries, keys, values, sinks);
  };
  if (U == 1) return attend(q, k, v, sink);
  const Shards shards = layout_.shards(ring_.rank());
  const auto to_group = [&](const Variable& x, Heads heads) {
    return transpose(heads_to_sequence(transpose(x, 1, 2), shards, ulysses_, heads), 1, 2);
  };
  const Variable out =
      attend(to_group(q, Heads::divided), to_group(k, Heads::shared), to_group(v, Heads::shared),
             sink.defined() ? slice(sink, 0, first, first + h) : sink);
  return transpose(sequence_to_heads(transpose(out, 1, 2), shards, ulysses_), 1, 2);
}

}  // namespace fovea::distributed
