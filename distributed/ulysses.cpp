// SPDX-License-Identifier: Apache-2.0
#include "distributed/ulysses.h"

#include "core/ops/reduce.h"

namespace fovea::distributed {
namespace {

class Ulysses {
 public:
  Ulysses(const Shards& shards, const Communicator& comm) : shards_(shards), comm_(comm) {}

  int64_t ranks() const { return comm_.size(); }
  int64_t tokens() const { return shards_.tokens(); }

  // [B, n, H, D] -> [B, N, max(1, H/U), D]
  Tensor to_sequence(const Tensor& x) const {
    const int64_t U = ranks(), B = x.dim(0), n = x.dim(1), H = x.dim(2), D = x.dim(3),
                  h = std::max<int64_t>(1, H / U);
    shards_.check("ulysses", comm_, n);
    const Tensor sent =
        H >= U ? x.reshape({B, n, U, h, D}).permute({2, 0, 3, 1, 4}).contiguous()
               : x.unsqueeze(3).expand({B, n, H, U / H, D}).permute({2, 3, 0, 1, 4}).contiguous();
    const Tensor received = Tensor::empty({B * h * tokens() * D}, x.dtype(), x.device());
    comm_.all_to_all_v(received, parts(B * h * D), sent, equal_parts(B * h * n * D)).wait();
    const Tensor out = Tensor::empty({B, h, tokens(), D}, x.dtype(), x.device());
    for_each_shard(out, received,
                   [](const Tensor& tokens, const Tensor& part) { tokens.copy_(part); });
    return out.transpose(1, 2);
  }

  // [B, N, h, D] -> [U, B, h, n, D]: all heads of this rank's tokens.
  Tensor to_heads(const Tensor& x) const {
    const int64_t B = x.dim(0), h = x.dim(2), D = x.dim(3), n = shards_.length(comm_.rank());
    const Tensor sent = Tensor::empty({x.numel()}, x.dtype(), x.device());
    for_each_shard(x.transpose(1, 2), sent,
                   [](const Tensor& tokens, const Tensor& part) { part.copy_(tokens); });
    const Tensor received = Tensor::empty({ranks(), B, h, n, D}, x.dtype(), x.device());
    comm_.all_to_all_v(received, equal_parts(B * h * n * D), sent, parts(B * h * D)).wait();
    return received;
  }

 private:
  std::vector<int64_t> parts(int64_t elements_a_token) const {
    std::vector<int64_t> counts;
    for (int r = 0; r < comm_.size(); ++r) counts.push_back(shards_.length(r) * elements_a_token);
    return counts;
  }
  std::vector<int64_t> equal_parts(int64_t elements) const {
    return std::vector<int64_t>(static_cast<size_t>(comm_.size()), elements);
  }
  // visit(x's tokens of rank r, their part of the buffer), both [B, h, n_r, D]; x [B, h, N, D]
  template <typename Visit>
  void for_each_shard(const Tensor& x, const Tensor& buffer, const Visit& visit) const {
    const int64_t a_token = x.dim(0) * x.dim(1) * x.dim(3);
    for (int r = 0; r < comm_.size(); ++r) {
      if (shards_.length(r) == 0) continue;
      const Tensor part = buffer.slice(0, shards_.begin(r) * a_token, shards_.end(r) * a_token);
      visit(x.slice(2, shards_.begin(r), shards_.end(r)),
            part.view({x.dim(0), x.dim(1), shards_.length(r), x.dim(3)}));
    }
  }

  const Shards shards_;
  const Communicator comm_;
};

// [U, B, h, n, D] -> [B, n, U h, D]
Tensor all_heads(const Tensor& x) {
  return x.permute({1, 3, 0, 2, 4}).reshape({x.dim(1), x.dim(3), x.dim(0) * x.dim(2), x.dim(4)});
}

class HeadsToSequenceFn final : public Function {
 public:
  explicit HeadsToSequenceFn(const Ulysses& ulysses) : ulysses_(ulysses) {}
  const char* name() const override { return "heads_to_sequence"; }
  Tensor forward(const Tensor& x) {
    heads_ = x.dim(2);
    return ulysses_.to_sequence(x);
  }
  Tensors backward(const Tensors& dout) override {
    const Tensor dx = ulysses_.to_heads(dout[0]);
    const int64_t U = ulysses_.ranks();
    if (heads_ >= U) return {all_heads(dx)};
    const Tensor by_head = dx.view({heads_, U / heads_, dx.dim(1), 1, dx.dim(3), dx.dim(4)});
    return {all_heads(sum(by_head, 1))};
  }

 private:
  const Ulysses ulysses_;
  int64_t heads_ = 0;
};

class SequenceToHeadsFn final : public Function {
 public:
  explicit SequenceToHeadsFn(const Ulysses& ulysses) : ulysses_(ulysses) {}
  const char* name() const override { return "sequence_to_heads"; }
  Tensor forward(const Tensor& x) { return all_heads(ulysses_.to_heads(x)); }
  Tensors backward(const Tensors& dout) override { return {ulysses_.to_sequence(dout[0])}; }

 private:
  const Ulysses ulysses_;
};

}  // namespace

Variable heads_to_sequence(const Variable& x, const Shards& shards, const Communicator& comm,
                           Heads heads) {
  FOVEA_CHECK(x.shape().rank() == 4, "ulysses: expected [B, n, H, D], found ", x.shape());
  const int64_t H = x.dim(2), U = comm.size();
  FOVEA_CHECK(H >= 1 && (H % U == 0 || (heads == Heads::shared && U % H == 0)), "ulysses: ", H,
              heads == Heads::shared ? " key heads neither divide nor are divided by "
                                     : " heads are not divided by ",
              U, " ranks");
  return record(make<HeadsToSequenceFn>(Ulysses(shards, comm)), x);
}

Variable sequence_to_heads(const Variable& x, const Shards& shards, const Communicator& comm) {
  FOVEA_CHECK(x.shape().rank() == 4 && x.dim(1) == shards.tokens(), "ulysses: expected [B, ",
              shards.tokens(), ", H/U, D], found ", x.shape());
  return record(make<SequenceToHeadsFn>(Ulysses(shards, comm)), x);
}

}  // namespace fovea::distributed
