// SPDX-License-Identifier: Apache-2.0
#include "attention/score/softmax.h"

#include "autograd/function.h"

namespace fovea::attention {
namespace {

class ScoreFn final : public Function {
 public:
  ScoreFn(const ScoreRule& rule, Tensor slopes, Mask mask, const ScoreOptions& options)
      : rule_(rule), slopes_(std::move(slopes)), mask_(std::move(mask)), options_(options) {}
  const char* name() const override { return "attention"; }

  Tensor forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sink,
                 const Tensor& bias) {
    const ScoreResult result =
        score_forward(rule_, {q, k, v, slopes_, sink, bias}, mask_, options_);
    save(q, k, v, sink, bias, result.out, result.lse);
    return result.out;
  }
  Tensors backward(const Tensors& dout) override {
    const auto [q, k, v, sink, bias, out, lse] = saved<7>();
    const ScoreGrads grads =
        score_backward(rule_, dout[0], {out, lse}, {q, k, v, slopes_, sink, bias}, mask_, options_);
    return {grads.dq, grads.dk, grads.dv, sink.defined() ? grads.dsink.to(sink.dtype()) : Tensor(),
            bias.defined() ? grads.dbias.to(bias.dtype()) : Tensor()};
  }

 private:
  const ScoreRule& rule_;
  Tensor slopes_;
  Mask mask_;
  ScoreOptions options_;
};

class PackedSoftmaxFn final : public Function {
 public:
  PackedSoftmaxFn(int64_t heads, int64_t kv_heads, Tensor slopes, Mask mask,
                  const ScoreOptions& options)
      : heads_(heads),
        kv_heads_(kv_heads),
        slopes_(std::move(slopes)),
        mask_(std::move(mask)),
        options_(options) {}
  const char* name() const override { return "softmax_attention"; }

  Tensor forward(const Tensor& qkv, const Tensor& sink) {
    const auto [q, k, v] = unpack_qkv(qkv, heads_, kv_heads_);
    const ScoreResult result = softmax_forward({q, k, v, slopes_, sink}, mask_, options_);
    save(qkv, sink, result.out, result.lse);
    return result.out.transpose(1, 2).view({q.dim(0), q.dim(2), heads_ * q.dim(3)});
  }
  Tensors backward(const Tensors& dout) override {
    const auto [qkv, sink, out, lse] = saved<4>();
    const auto [q, k, v] = unpack_qkv(qkv, heads_, kv_heads_);
    const Tensor dqkv = Tensor::empty_like(qkv);
    const auto [dq, dk, dv] = unpack_qkv(dqkv, heads_, kv_heads_);
    const Tensor d = dout[0].reshape({q.dim(0), q.dim(2), heads_, q.dim(3)}).transpose(1, 2);
    const ScoreGrads grads = softmax_backward(d, {out, lse}, {q, k, v, slopes_, sink}, mask_,
                                              options_, {dq, dk, dv, Tensor()});
    return {dqkv, sink.defined() ? grads.dsink.to(sink.dtype()) : Tensor()};
  }

 private:
  int64_t heads_, kv_heads_;
  Tensor slopes_;
  Mask mask_;
  ScoreOptions options_;
};

}  // namespace

Variable score_attention(const ScoreRule& rule, const Variable& q, const Variable& k,
                         const Variable& v, const Variable& sink, const Tensor& slopes,
                         const Mask& mask, const ScoreOptions& options, const Variable& bias) {
  return record(make<ScoreFn>(rule, slopes, mask, options), q, k, v, sink, bias);
}

Variable softmax_attention_packed(const Variable& qkv, int64_t heads, int64_t kv_heads,
                                  const Variable& sink, const Tensor& slopes, const Mask& mask,
                                  const ScoreOptions& options) {
  return record(make<PackedSoftmaxFn>(heads, kv_heads, slopes, mask, options), qkv, sink);
}

QkvViews unpack_qkv(const Tensor& qkv, int64_t heads, int64_t kv_heads) {
  FOVEA_CHECK(qkv.rank() == 3 && qkv.dim(2) % (heads + 2 * kv_heads) == 0,
              "softmax: packed qkv is ", qkv.shape(), "; expected [B, N, (", heads, " + 2 x ",
              kv_heads, ") D]");
  const int64_t dim = qkv.dim(2) / (heads + 2 * kv_heads);
  const Tensor by_head =
      qkv.view({qkv.dim(0), qkv.dim(1), heads + 2 * kv_heads, dim}).transpose(1, 2);
  return {by_head.slice(1, 0, heads), by_head.slice(1, heads, heads + kv_heads),
          by_head.slice(1, heads + kv_heads, heads + 2 * kv_heads)};
}

}  // namespace fovea::attention
