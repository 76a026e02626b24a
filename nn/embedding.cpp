// SPDX-License-Identifier: Apache-2.0
#include "nn/embedding.h"

#include <cstring>
#include <numeric>

#include "autograd/function.h"
#include "core/parallel.h"

namespace fovea::nn {
namespace {

class EmbeddingFn final : public Function {
 public:
  explicit EmbeddingFn(const Tensor& ids) : ids_(ids.contiguous()) {}
  const char* name() const override { return "embedding"; }

  Tensor forward(const Tensor& weight_in) {
    FOVEA_CHECK(weight_in.rank() == 2, "embedding: expected a weight [V, C], found ",
                weight_in.shape());
    const Tensor weight = weight_in.contiguous();
    vocab_ = weight.dim(0);
    const int64_t* ids = ids_.data<int64_t>();
    for (int64_t i = 0; i < ids_.numel(); ++i) {
      FOVEA_CHECK(ids[i] >= 0 && ids[i] < vocab_, "embedding: id ", ids[i], " at position ", i,
                  " is outside the table of ", vocab_, " rows");
    }
    Shape shape = ids_.shape();
    shape.push_back(weight.dim(1));
    const Tensor out = Tensor::empty(shape, weight.dtype());
    const auto row = static_cast<size_t>(weight.dim(1) * size_of(weight.dtype()));
    parallel_for(0, ids_.numel(), 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::memcpy(static_cast<char*>(out.raw()) + static_cast<size_t>(i) * row,
                    static_cast<const char*>(weight.raw()) + static_cast<size_t>(ids[i]) * row,
                    row);
      }
    });
    return out;
  }

  Tensors backward(const Tensors& dout) override {
    const Tensor d = dout[0].contiguous();
    const int64_t channels = d.dim(-1), count = ids_.numel();
    const int64_t* ids = ids_.data<int64_t>();
    // Counting sort: positions of each id, in order.
    std::vector<int64_t> first(static_cast<size_t>(vocab_) + 1, 0),
        positions(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) ++first[static_cast<size_t>(ids[i]) + 1];
    std::partial_sum(first.begin(), first.end(), first.begin());
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t i = 0; i < count; ++i)
      positions[static_cast<size_t>(next[static_cast<size_t>(ids[i])]++)] = i;
    const Tensor dw = Tensor::zeros({vocab_, channels}, d.dtype());
    dispatch_floating(d.dtype(), "embedding", [&]<typename T>() {
      parallel_for(0, vocab_, 64, [&](int64_t begin, int64_t end) {
        for (int64_t id = begin; id < end; ++id) {
          T* row = dw.data<T>() + id * channels;
          for (int64_t p = first[static_cast<size_t>(id)]; p < first[static_cast<size_t>(id) + 1];
               ++p) {
            const T* from = d.data<T>() + positions[static_cast<size_t>(p)] * channels;
            for (int64_t c = 0; c < channels; ++c) row[c] = T(row[c] + from[c]);
          }
        }
      });
    });
    return {dw};
  }

 private:
  Tensor ids_;
  int64_t vocab_ = 0;
};

}  // namespace

Variable embedding(const Variable& weight, const Tensor& ids) {
  FOVEA_CHECK(ids.defined() && ids.dtype() == Dtype::i64, "embedding: expected i64 ids");
  return record(make<EmbeddingFn>(ids), weight);
}

}  // namespace fovea::nn
