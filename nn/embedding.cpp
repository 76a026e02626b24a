// SPDX-License-Identifier: Apache-2.0
#include "nn/embedding.h"

#include <cstring>
#include <numeric>

#include "autograd/function.h"
#include "core/parallel.h"
#include "nn/cuda/embedding.h"
#include "nn/operands.h"

namespace fovea::nn {
namespace {

class EmbeddingFn final : public Function {
 public:
  explicit EmbeddingFn(const Tensor& ids) : ids_(ids.to(kCpu).contiguous()) {}
  const char* name() const override { return "embedding"; }

  Tensor forward(const Tensor& weight_in) {
    FOVEA_CHECK(weight_in.rank() == 2, "embedding: expected a weight [V, C], found ",
                weight_in.shape());
    check_operands(name(), weight_in);
    const Tensor weight = weight_in.contiguous();
    vocab_ = weight.dim(0);
    const int64_t* ids = ids_.data<int64_t>();
    for (int64_t i = 0; i < ids_.numel(); ++i) {
      FOVEA_CHECK(ids[i] >= 0 && ids[i] < vocab_, "embedding: id ", ids[i], " at position ", i,
                  " is outside the table of ", vocab_, " rows");
    }
    Shape shape = ids_.shape();
    shape.push_back(weight.dim(1));
    const Tensor out = Tensor::empty(shape, weight.dtype(), weight.device());
    if (const Device device = weight.device(); !device.is_cpu()) {
      const Tensor on_device = ids_.to(device);
      FOVEA_GPU_CALL(device, embedding_forward, out.raw(), weight.raw(), on_device.data<int64_t>(),
                     weight.dtype(), ids_.numel(), weight.dim(1), stream_of(device));
      return out;
    }
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
    const int64_t channels = d.dim(-1);
    const Lists lists = sorted();
    const std::vector<int64_t>&first = lists.first, &positions = lists.positions;
    if (!d.device().is_cpu()) return {backward_gpu(d, lists)};
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
  // The positions of id v, in order: positions[first[v]] to positions[first[v + 1]].
  struct Lists {
    std::vector<int64_t> first, positions;
  };

  Lists sorted() const {  // by counting
    const int64_t* ids = ids_.data<int64_t>();
    const int64_t count = ids_.numel();
    std::vector<int64_t> first(static_cast<size_t>(vocab_) + 1, 0),
        positions(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) ++first[static_cast<size_t>(ids[i]) + 1];
    std::partial_sum(first.begin(), first.end(), first.begin());
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t i = 0; i < count; ++i)
      positions[static_cast<size_t>(next[static_cast<size_t>(ids[i])]++)] = i;
    return {std::move(first), std::move(positions)};
  }

  // The host, which has the ids, sorts them; the device gets the lists of the ids that occur. A
  // list longer than kPiece is summed in pieces first, as rows of `partial`, so that a frequent id
  // does not take the time of the others together.
  Tensor backward_gpu(const Tensor& d, const Lists& sorted) const {
    constexpr int64_t kPiece = 128;
    const int64_t count = ids_.numel(), channels = d.dim(-1);
    std::vector<int64_t> rows, first{0}, positions, piece_first{0}, piece_positions;
    for (int64_t id = 0; id < vocab_; ++id) {
      const auto begin = sorted.positions.begin() + sorted.first[static_cast<size_t>(id)],
                 end = sorted.positions.begin() + sorted.first[static_cast<size_t>(id) + 1];
      if (begin == end) continue;
      rows.push_back(id);
      if (end - begin <= kPiece) {
        positions.insert(positions.end(), begin, end);
      } else {
        for (auto at = begin; at < end; at += std::min<int64_t>(kPiece, end - at)) {
          positions.push_back(count + static_cast<int64_t>(piece_first.size()) - 1);
          piece_positions.insert(piece_positions.end(), at,
                                 at + std::min<int64_t>(kPiece, end - at));
          piece_first.push_back(static_cast<int64_t>(piece_positions.size()));
        }
      }
      first.push_back(static_cast<int64_t>(positions.size()));
    }
    const Device device = d.device();
    std::vector<int64_t> lists;  // one copy for all
    std::vector<int64_t> offsets;
    for (const auto* list : {&rows, &first, &positions, &piece_first, &piece_positions}) {
      offsets.push_back(static_cast<int64_t>(lists.size()));
      lists.insert(lists.end(), list->begin(), list->end());
    }
    const Tensor table = Tensor::from(lists, {static_cast<int64_t>(lists.size())}, device);
    const auto list = [&](size_t i) { return table.data<int64_t>() + offsets[i]; };
    const auto pieces = static_cast<int64_t>(piece_first.size()) - 1;
    const Tensor partial = Tensor::empty({pieces, channels}, Dtype::f32, device),
                 dw = Tensor::zeros({vocab_, channels}, d.dtype(), device);
    FOVEA_GPU_CALL(device, embedding_sum, partial.raw(), Dtype::f32, nullptr, list(3), list(4),
                   d.raw(), d.dtype(), partial.data<float>(), count, pieces, channels,
                   stream_of(device));
    FOVEA_GPU_CALL(device, embedding_sum, dw.raw(), dw.dtype(), list(0), list(1), list(2), d.raw(),
                   d.dtype(), partial.data<float>(), count, static_cast<int64_t>(rows.size()),
                   channels, stream_of(device));
    return dw;
  }

  Tensor ids_;  // on the cpu
  int64_t vocab_ = 0;
};

}  // namespace

Variable embedding(const Variable& weight, const Tensor& ids) {
  FOVEA_CHECK(ids.defined() && ids.dtype() == Dtype::i64, "embedding: expected i64 ids");
  return record(make<EmbeddingFn>(ids), weight);
}

}  // namespace fovea::nn
