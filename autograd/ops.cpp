// SPDX-License-Identifier: Apache-2.0
#include "autograd/ops.h"

#include <algorithm>
#include <string>

#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "core/ops/reduce.h"

namespace fovea {
namespace {

// ---- arithmetic ---------------------------------------------------------------------------------

class AddFn final : public Function {
 public:
  explicit AddFn(double sign) : sign_(sign) {}
  const char* name() const override { return sign_ > 0 ? "add" : "sub"; }
  Tensor forward(const Tensor& a, const Tensor& b) {
    a_shape_ = a.shape();
    b_shape_ = b.shape();
    return sign_ > 0 ? add(a, b) : sub(a, b);
  }
  Tensors backward(const Tensors& dout) override {
    Tensor da = wanted(0) ? sum_to(dout[0], a_shape_) : Tensor();
    Tensor db = wanted(1) ? sum_to(dout[0], b_shape_) : Tensor();
    if (db.defined() && sign_ < 0) db = scale(db, -1.0);
    return {da, db};
  }

 private:
  double sign_;
  Shape a_shape_, b_shape_;
};

class MulFn final : public Function {
 public:
  const char* name() const override { return "mul"; }
  Tensor forward(const Tensor& a, const Tensor& b) {
    save(a, b);
    return mul(a, b);
  }
  Tensors backward(const Tensors& dout) override {
    const auto [a, b] = saved<2>();
    return {wanted(0) ? sum_to(mul(dout[0], b), a.shape()) : Tensor(),
            wanted(1) ? sum_to(mul(dout[0], a), b.shape()) : Tensor()};
  }
};

class ScaleFn final : public Function {
 public:
  explicit ScaleFn(double factor) : factor_(factor) {}
  const char* name() const override { return "scale"; }
  Tensor forward(const Tensor& a) { return scale(a, factor_); }
  Tensors backward(const Tensors& dout) override { return {scale(dout[0], factor_)}; }

 private:
  double factor_;
};

// c = a b:  da = dc b^T,  db = a^T dc (a's leading axes folded into rows when b is 2-D)
class MatmulFn final : public Function {
 public:
  const char* name() const override { return "matmul"; }
  Tensor forward(const Tensor& a, const Tensor& b) {
    save(a, b);
    return matmul(a, b);
  }
  Tensors backward(const Tensors& dout) override {
    const auto [a, b] = saved<2>();
    Tensor da, db;
    if (wanted(0)) da = matmul(dout[0], b.transpose(-1, -2));
    if (wanted(1)) {
      const bool folded = b.rank() == 2 && a.rank() > 2;
      const Tensor rows = folded ? a.reshape({-1, a.dim(-1)}) : a;
      const Tensor drows = folded ? dout[0].reshape({-1, dout[0].dim(-1)}) : dout[0];
      db = matmul(rows.transpose(-1, -2), drows);
    }
    return {da, db};
  }
};

// ---- sums ---------------------------------------------------------------------------------------

class SumFn final : public Function {
 public:
  // axis < 0: all elements
  SumFn(int axis, double factor) : axis_(axis), factor_(factor) {}
  const char* name() const override { return "sum"; }
  Tensor forward(const Tensor& a) {
    shape_ = a.shape();
    const Tensor total = axis_ < 0 ? sum_all(a) : sum(a, axis_);
    return factor_ == 1.0 ? total : scale(total, factor_);
  }
  Tensors backward(const Tensors& dout) override {
    const Tensor d = factor_ == 1.0 ? dout[0] : scale(dout[0], factor_);
    return {(axis_ < 0 ? d : d.unsqueeze(axis_)).expand(shape_)};
  }

 private:
  int axis_;
  double factor_;
  Shape shape_;
};

// ---- shape --------------------------------------------------------------------------------------

class ReshapeFn final : public Function {
 public:
  explicit ReshapeFn(const Shape& to) : to_(to) {}
  const char* name() const override { return "reshape"; }
  Tensor forward(const Tensor& a) {
    from_ = a.shape();
    return a.reshape(to_);
  }
  Tensors backward(const Tensors& dout) override { return {dout[0].reshape(from_)}; }

 private:
  Shape from_, to_;
};

class TransposeFn final : public Function {
 public:
  TransposeFn(int axis_a, int axis_b) : a_(axis_a), b_(axis_b) {}
  const char* name() const override { return "transpose"; }
  Tensor forward(const Tensor& x) { return x.transpose(a_, b_); }
  Tensors backward(const Tensors& dout) override { return {dout[0].transpose(a_, b_)}; }

 private:
  int a_, b_;
};

class SliceFn final : public Function {
 public:
  SliceFn(int axis, int64_t begin, int64_t end) : axis_(axis), begin_(begin), end_(end) {}
  const char* name() const override { return "slice"; }
  Tensor forward(const Tensor& a) {
    shape_ = a.shape();
    return a.slice(axis_, begin_, end_);
  }
  Tensors backward(const Tensors& dout) override {
    Tensor da = Tensor::zeros(shape_, dout[0].dtype(), dout[0].device());
    da.slice(axis_, begin_, end_).copy_(dout[0]);
    return {da};
  }

 private:
  int axis_;
  int64_t begin_, end_;
  Shape shape_;
};

class ExpandFn final : public Function {
 public:
  explicit ExpandFn(const Shape& to) : to_(to) {}
  const char* name() const override { return "expand"; }
  Tensor forward(const Tensor& a) {
    from_ = a.shape();
    return a.expand(to_);
  }
  Tensors backward(const Tensors& dout) override { return {sum_to(dout[0], from_)}; }

 private:
  Shape from_, to_;
};

class ConcatFn final : public Function {
 public:
  explicit ConcatFn(int axis) : axis_(axis) {}
  const char* name() const override { return "concat"; }
  Tensor forward(const Tensors& parts) {
    FOVEA_CHECK(!parts.empty(), "concat: nothing to join");
    axis_ = parts[0].shape().wrap(axis_);
    Shape shape = parts[0].shape();
    shape[axis_] = 0;
    for (const Tensor& part : parts) {
      Shape expected = shape;
      FOVEA_CHECK(part.rank() == shape.rank() && part.dtype() == parts[0].dtype(),
                  "concat: part is ", part.dtype(), ' ', part.shape(), " but the first is ",
                  parts[0].dtype(), ' ', parts[0].shape());
      FOVEA_CHECK(part.device() == parts[0].device(), "concat: part ", part.shape(), " is on ",
                  part.device(), " but the first on ", parts[0].device(),
                  "; move one with Tensor::to");
      expected[axis_] = part.dim(axis_);
      FOVEA_CHECK(part.shape() == expected, "concat: part is ", part.shape(), " but the first is ",
                  parts[0].shape(), "; only axis ", axis_, " may differ");
      sizes_.push_back(part.dim(axis_));
      shape[axis_] += part.dim(axis_);
    }
    Tensor out = Tensor::empty(shape, parts[0].dtype(), parts[0].device());
    int64_t at = 0;
    for (const Tensor& part : parts) {
      out.slice(axis_, at, at + part.dim(axis_)).copy_(part);
      at += part.dim(axis_);
    }
    return out;
  }
  Tensors backward(const Tensors& dout) override {
    Tensors gradients;
    int64_t at = 0;
    for (int64_t size : sizes_) {
      gradients.push_back(dout[0].slice(axis_, at, at + size));
      at += size;
    }
    return gradients;
  }

 private:
  int axis_;
  std::vector<int64_t> sizes_;
};

class SplitFn final : public Function {
 public:
  SplitFn(int axis, int64_t size) : axis_(axis), size_(size) {}
  const char* name() const override { return "split"; }
  Tensors forward(const Tensor& a) {
    axis_ = a.shape().wrap(axis_);
    FOVEA_CHECK(size_ > 0 && a.dim(axis_) % size_ == 0, "split: pieces of ", size_,
                " do not divide axis ", axis_, " of ", a.shape());
    shape_ = a.shape();
    Tensors pieces;
    for (int64_t at = 0; at < a.dim(axis_); at += size_)
      pieces.push_back(a.slice(axis_, at, at + size_));
    return pieces;
  }
  Tensors backward(const Tensors& dout) override {
    const auto some =
        std::find_if(dout.begin(), dout.end(), [](const Tensor& piece) { return piece.defined(); });
    const Tensor da = Tensor::empty(shape_, some->dtype(), some->device());
    for (size_t i = 0; i < dout.size(); ++i) {
      const int64_t at = static_cast<int64_t>(i) * size_;
      const Tensor piece = da.slice(axis_, at, at + size_);
      dout[i].defined() ? piece.copy_(dout[i]) : piece.zero_();
    }
    return {da};
  }

 private:
  int axis_;
  int64_t size_;
  Shape shape_;
};

// ---- conversion ---------------------------------------------------------------------------------

class CastFn final : public Function {
 public:
  explicit CastFn(Dtype to) : to_(to) {}
  const char* name() const override { return "cast"; }
  Tensor forward(const Tensor& a) {
    from_ = a.dtype();
    return a.to(to_);
  }
  Tensors backward(const Tensors& dout) override { return {dout[0].to(from_)}; }

 private:
  Dtype from_ = Dtype::f32, to_;
};

}  // namespace

Variable add(const Variable& a, const Variable& b) { return record(make<AddFn>(1.0), a, b); }
Variable sub(const Variable& a, const Variable& b) { return record(make<AddFn>(-1.0), a, b); }
Variable mul(const Variable& a, const Variable& b) { return record(make<MulFn>(), a, b); }
Variable scale(const Variable& a, double factor) { return record(make<ScaleFn>(factor), a); }
Variable matmul(const Variable& a, const Variable& b) { return record(make<MatmulFn>(), a, b); }

Variable sum_all(const Variable& a) { return record(make<SumFn>(-1, 1.0), a); }
Variable mean_all(const Variable& a) {
  return record(make<SumFn>(-1, 1.0 / static_cast<double>(std::max<int64_t>(1, a.value().numel()))),
                a);
}
Variable sum(const Variable& a, int axis) {
  return record(make<SumFn>(a.shape().wrap(axis), 1.0), a);
}
Variable mean(const Variable& a, int axis) {
  return record(make<SumFn>(a.shape().wrap(axis),
                            1.0 / static_cast<double>(std::max<int64_t>(1, a.dim(axis)))),
                a);
}

Variable reshape(const Variable& a, const Shape& shape) {
  return record(make<ReshapeFn>(shape), a);
}
Variable transpose(const Variable& a, int axis_a, int axis_b) {
  return record(make<TransposeFn>(axis_a, axis_b), a);
}
Variable slice(const Variable& a, int axis, int64_t begin, int64_t end) {
  return record(make<SliceFn>(axis, begin, end), a);
}
Variable expand(const Variable& a, const Shape& shape) { return record(make<ExpandFn>(shape), a); }
Variable concat(const Variables& parts, int axis) {
  return record_list(make<ConcatFn>(axis), parts);
}
Variables split(const Variable& a, int axis, int64_t size) {
  return record(make<SplitFn>(axis, size), a);
}

Variable cast(const Variable& a, Dtype dtype) {
  return a.dtype() == dtype ? a : record(make<CastFn>(dtype), a);
}

}  // namespace fovea
