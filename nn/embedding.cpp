// SPDX-License-Identifier: Apache-2.0
#include "nn/embedding.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

#include "autograd/ops.h"
#include "core/graph.h"
#include "core/parallel.h"
#include "nn/cuda/embedding.h"
#include "nn/operands.h"
#include "nn/token_blocks.h"

namespace fovea::nn {
namespace {

void check_ids(const Tensor& ids, int64_t vocab) {
  const int64_t* values = ids.data<int64_t>();
  for (int64_t i = 0; i < ids.numel(); ++i) {
    FOVEA_CHECK(values[i] >= 0 && values[i] < vocab, "embedding: id ", values[i], " at position ",
                i, " is outside the table of ", vocab, " rows");
  }
}

// The positions of id v, in order: positions[first[v]] to positions[first[v + 1]].
struct Lists {
  std::vector<int64_t> first, positions;
};

Lists sorted(const Tensor& ids_tensor, int64_t vocab) {  // by counting
  const int64_t* ids = ids_tensor.data<int64_t>();
  const int64_t count = ids_tensor.numel();
  std::vector<int64_t> first(static_cast<size_t>(vocab) + 1, 0),
      positions(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) ++first[static_cast<size_t>(ids[i]) + 1];
  std::partial_sum(first.begin(), first.end(), first.begin());
  std::vector<int64_t> next(first.begin(), first.end() - 1);
  for (int64_t i = 0; i < count; ++i)
    positions[static_cast<size_t>(next[static_cast<size_t>(ids[i])]++)] = i;
  return {std::move(first), std::move(positions)};
}

// The same for a GPU device, of the ids that occur, as one table whose size is that of the batch. A
// list longer than kPiece is summed in pieces first, as rows of their own, so that a frequent id
// does not take the time of the others together.
struct SumTable {
  static constexpr int64_t kPiece = 128;
  int64_t count, vocab;

  // A list of n > kPiece positions has no more than n / (kPiece / 2) pieces.
  int64_t most_rows() const { return std::min(vocab, count); }
  int64_t most_pieces() const { return count / (kPiece / 2); }
  // Parts of the table: rows' ids, their first positions, the positions; pieces' first, positions.
  int64_t rows() const { return 0; }
  int64_t first() const { return most_rows(); }
  int64_t positions() const { return first() + most_rows() + 1; }
  int64_t piece_first() const { return positions() + count; }
  int64_t piece_positions() const { return piece_first() + most_pieces() + 1; }
  int64_t size() const { return piece_positions() + count; }

  struct Used {
    int64_t rows, pieces;
  };
  // Rows that are not used have id -1 and, as pieces, no positions.
  Used write(int64_t* table, const Tensor& ids) const {
    std::fill(table, table + size(), 0);
    const Lists lists = sorted(ids, vocab);
    int64_t row = 0, position = 0, piece = 0, piece_position = 0;
    for (int64_t id = 0; id < vocab; ++id) {
      int64_t at = lists.first[static_cast<size_t>(id)];
      const int64_t end = lists.first[static_cast<size_t>(id) + 1];
      if (at == end) continue;
      table[rows() + row++] = id;
      if (end - at <= kPiece) {
        for (; at < end; ++at)
          table[positions() + position++] = lists.positions[static_cast<size_t>(at)];
      }
      while (at < end) {
        table[positions() + position++] = count + piece++;
        for (const int64_t last = std::min(end, at + kPiece); at < last; ++at)
          table[piece_positions() + piece_position++] = lists.positions[static_cast<size_t>(at)];
        table[piece_first() + piece] = piece_position;
      }
      table[first() + row] = position;
    }
    const Used used{row, piece};
    for (; row < most_rows(); ++row) {
      table[rows() + row] = -1;
      table[first() + row + 1] = position;
    }
    for (; piece < most_pieces(); ++piece) table[piece_first() + piece + 1] = piece_position;
    return used;
  }
};

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
    Shape shape = ids_.shape();
    shape.push_back(weight.dim(1));
    const Tensor out = Tensor::empty(shape, weight.dtype(), weight.device());
    if (const Device device = weight.device(); !device.is_cpu()) {
      const Tensor on_device =
          host_input(ids_.shape(), Dtype::i64, device, [ids = ids_, vocab = vocab_](void* to) {
            check_ids(ids, vocab);
            std::memcpy(to, ids.raw(), static_cast<size_t>(ids.bytes()));
          });
      FOVEA_GPU_CALL(device, embedding_forward, out.raw(), weight.raw(), on_device.data<int64_t>(),
                     weight.dtype(), ids_.numel(), weight.dim(1), stream_of(device));
      return out;
    }
    check_ids(ids_, vocab_);
    const int64_t* ids = ids_.data<int64_t>();
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
    if (!d.device().is_cpu()) return {backward_gpu(d)};
    const Lists lists = sorted(ids_, vocab_);
    const std::vector<int64_t>&first = lists.first, &positions = lists.positions;
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
  // The host, which has the ids, sorts them; the device gets a table.
  Tensor backward_gpu(const Tensor& d) const {
    const Device device = d.device();
    const int64_t count = ids_.numel(), channels = d.dim(-1);
    const SumTable form{count, vocab_};
    SumTable::Used used{form.most_rows(), form.most_pieces()};
    std::function<void(void*)> fill = [&](void* to) {
      used = form.write(static_cast<int64_t*>(to), ids_);
    };
    if (is_capturing(device))  // launched for as many as there may be
      fill = [form, ids = ids_](void* to) { form.write(static_cast<int64_t*>(to), ids); };
    const Tensor table = host_input({form.size()}, Dtype::i64, device, fill);
    const int64_t* at = table.data<int64_t>();
    const Tensor partial = Tensor::empty({used.pieces, channels}, Dtype::f32, device),
                 dw = Tensor::zeros({vocab_, channels}, d.dtype(), device);
    FOVEA_GPU_CALL(device, embedding_sum, partial.raw(), Dtype::f32, nullptr,
                   at + form.piece_first(), at + form.piece_positions(), d.raw(), d.dtype(),
                   partial.data<float>(), count, used.pieces, channels, stream_of(device));
    FOVEA_GPU_CALL(device, embedding_sum, dw.raw(), dw.dtype(), at + form.rows(), at + form.first(),
                   at + form.positions(), d.raw(), d.dtype(), partial.data<float>(), count,
                   used.rows, channels, stream_of(device));
    return dw;
  }

  Tensor ids_;  // on the cpu
  int64_t vocab_ = 0;
};

}  // namespace

Variable embedding(const Variable& weight, const Tensor& ids) {
  FOVEA_CHECK(ids.defined() && ids.dtype() == Dtype::i64, "embedding: expected i64 ids");
  FOVEA_CHECK(!is_capturing(weight.value().device()) || ids.is_contiguous(), "embedding: ids ",
              ids.shape(), " with strides ", ids.strides(),
              " in a captured region; expected contiguous ones, which can be written again");
  const int64_t block = TokenBlocks::current();
  if (block == 0) return record(make<EmbeddingFn>(ids), weight);
  FOVEA_CHECK(ids.numel() > 0 && ids.numel() % block == 0, "embedding: ids ", ids.shape(),
              " are no multiple of ", block, " tokens");
  const Tensor all = ids.reshape({-1});
  Variables rows;
  for (int64_t at = 0; at < ids.numel(); at += block)
    rows.push_back(record(make<EmbeddingFn>(all.slice(0, at, at + block)), weight));
  Shape shape = ids.shape();
  shape.push_back(weight.dim(1));
  return reshape(concat(rows, 0), shape);
}

}  // namespace fovea::nn
