// SPDX-License-Identifier: Apache-2.0
#include "core/ops/reduce.h"

#include <vector>

#include "core/cpu/reduce.h"
#include "core/cuda/reduce_ops.h"
#include "core/parallel.h"

namespace fovea {
namespace {

// a, contiguous on a GPU device, as [outer, count, inner] -> [outer, inner]
Tensor sum_on_gpu(const char* op, const Tensor& a, int64_t outer, int64_t count, int64_t inner,
                  Dtype dtype) {
  FOVEA_CHECK((a.dtype() == Dtype::f32 || a.dtype() == Dtype::bf16) &&
                  (dtype == Dtype::f32 || dtype == Dtype::bf16),
              op, ": expected f32 or bf16 on ", a.device(), ", found ", a.dtype(), " for ", dtype);
  if (a.numel() == 0) return Tensor::zeros({outer, inner}, dtype, a.device());
  Tensor rest = a;
  for (bool whole = false; !whole;) {
    const int64_t pieces = SumPlan(rest.dtype(), count, inner).pieces;
    whole = pieces == 1;
    const Tensor sums =
        Tensor::empty({outer, pieces, inner}, whole ? dtype : Dtype::f32, a.device());
    FOVEA_GPU_CALL(a.device(), sum_pass, sums.raw(), sums.dtype(), rest.raw(), rest.dtype(), outer,
                   count, inner, stream_of(a.device()));
    rest = sums;
    count = pieces;
  }
  return rest.view({outer, inner});
}

}  // namespace

Tensor sum_all(const Tensor& a) {
  const Tensor flat = a.contiguous();
  if (!a.device().is_cpu()) return sum_on_gpu("sum_all", flat, 1, a.numel(), 1, a.dtype()).view({});
  Tensor out = Tensor::empty({}, a.dtype());
  constexpr int64_t kBlock = 16384;
  const int64_t blocks = (flat.numel() + kBlock - 1) / kBlock;
  std::vector<double> partial(static_cast<size_t>(blocks));
  dispatch_floating(a.dtype(), "sum_all", [&]<typename T>() {
    const T* data = flat.data<T>();
    parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        double total = 0.0;
        for (int64_t i = block * kBlock; i < std::min(flat.numel(), (block + 1) * kBlock); ++i)
          total += static_cast<double>(data[i]);
        partial[static_cast<size_t>(block)] = total;
      }
    });
  });
  double total = 0.0;
  for (double value : partial) total += value;
  out.fill_(total);
  return out;
}

Tensor sum(const Tensor& a, int axis) { return sum(a, axis, a.dtype()); }

// Axis `axis` of a as [outer, count, inner]. A long `count` is cut into fixed blocks, summed by any
// thread and then added in order.
Tensor sum(const Tensor& a, int axis, Dtype dtype) {
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
  if (!a.device().is_cpu())
    return sum_on_gpu("sum", source, outer, count, inner, dtype).view(shape);
  constexpr int64_t kColumns = 256, kRows = 128;
  const int64_t panels = (inner + kColumns - 1) / kColumns;
  const int64_t blocks = std::max<int64_t>(1, (count + kRows - 1) / kRows);
  return dispatch_floating(a.dtype(), "sum", [&]<typename T>() -> Tensor {
    using Acc = accumulator_t<T>;
    const T* data = source.data<T>();
    const Tensor partial = Tensor::empty({blocks, outer * inner}, dtype_of<Acc>);
    parallel_for(0, outer * panels * blocks, 2, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t block = piece % blocks, rest = piece / blocks;
        const int64_t o = rest / panels, first = rest % panels * kColumns;
        const int64_t columns = std::min(kColumns, inner - first);
        const int64_t rows = std::min(count, (block + 1) * kRows) - block * kRows;
        const T* row = data + (o * count + block * kRows) * inner + first;
        Acc* total = partial.data<Acc>() + block * outer * inner + o * inner + first;
        if constexpr (std::is_same_v<T, double>) {
          std::fill(total, total + columns, 0.0);
          for (int64_t j = 0; j < rows; ++j, row += inner) {
            for (int64_t c = 0; c < columns; ++c) total[c] += row[c];
          }
        } else {
          FOVEA_SIMD_CALL(column_sums, total, row, dtype_of<T>, inner, rows, columns);
        }
      }
    });
    Acc* sums = partial.data<Acc>();
    for (int64_t block = 1; block < blocks; ++block) {
      const Acc* more = sums + block * outer * inner;
      for (int64_t i = 0; i < outer * inner; ++i) sums[i] += more[i];
    }
    return partial.select(0, 0).view(shape).to(dtype);
  });
}

Tensor sum_to(const Tensor& a, const Shape& shape) {
  FOVEA_CHECK(broadcast_shapes("sum_to", shape, a.shape()) == a.shape(), "sum_to: ", shape,
              " does not broadcast to ", a.shape());
  Tensor out = a;
  while (out.rank() > shape.rank()) out = sum(out, 0);
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (shape[axis] == 1 && out.dim(axis) != 1) out = sum(out, axis).unsqueeze(axis);
  }
  return out;
}

}  // namespace fovea
