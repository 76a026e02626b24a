// SPDX-License-Identifier: Apache-2.0
#include "core/ops/reduce.h"

#include <vector>

#include "core/parallel.h"

namespace fovea {

Tensor sum_all(const Tensor& a) {
  const Tensor flat = a.contiguous();
  Tensor out = Tensor::empty({}, a.dtype());
  constexpr int64_t kBlock = 16384;
  const int64_t blocks = (flat.numel() + kBlock - 1) / kBlock;
  std::vector<double> partial(static_cast<size_t>(blocks));
  dispatch_floating(a.dtype(), "sum_all", [&]<typename T>() {
    const T* data = flat.data<T>();
    parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        double total = 0.0;
        for (int64_t i = block * kBlock; i < std::min(flat.numel(), (block + 1) * kBlock); ++i) total += static_cast<double>(data[i]);
        partial[static_cast<size_t>(block)] = total;
      }
    });
  });
  double total = 0.0;
  for (double value : partial) total += value;
  out.fill_(total);
  return out;
}

Tensor sum(const Tensor& a, int axis) {
  axis = a.shape().wrap(axis);
  const Tensor source = a.contiguous();
  Shape shape;
  int64_t outer = 1, inner = 1;
  for (int i = 0; i < a.rank(); ++i) {
    if (i != axis) shape.push_back(a.dim(i));
    if (i < axis) outer *= a.dim(i);
    if (i > axis) inner *= a.dim(i);
  }
  const int64_t count = a.dim(axis);
  Tensor out = Tensor::empty(shape, a.dtype());
  dispatch_floating(a.dtype(), "sum", [&]<typename T>() {
    using Acc = accumulator_t<T>;
    const T* data = source.data<T>();
    T* to = out.data<T>();
    constexpr int64_t kColumns = 256;  // columns one thread sums at a time, walking down the rows
    const int64_t panels = (inner + kColumns - 1) / kColumns;
    parallel_for(0, outer * panels, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, count * std::min(inner, kColumns))),
                 [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t o = piece / panels, first = piece % panels * kColumns;
        const int64_t columns = std::min(kColumns, inner - first);
        Acc total[kColumns] = {};
        for (int64_t j = 0; j < count; ++j) {
          const T* row = data + (o * count + j) * inner + first;
          for (int64_t c = 0; c < columns; ++c) total[c] += static_cast<Acc>(row[c]);
        }
        for (int64_t c = 0; c < columns; ++c) to[o * inner + first + c] = static_cast<T>(total[c]);
      }
    });
  });
  return out;
}

Tensor sum_to(const Tensor& a, const Shape& shape) {
  FOVEA_CHECK(broadcast_shapes("sum_to", shape, a.shape()) == a.shape(), "sum_to: ", shape, " does not broadcast to ", a.shape());
  Tensor out = a;
  while (out.rank() > shape.rank()) out = sum(out, 0);
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (shape[axis] == 1 && out.dim(axis) != 1) out = sum(out, axis).unsqueeze(axis);
  }
  return out;
}

}  // namespace fovea
