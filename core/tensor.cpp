// SPDX-License-Identifier: Apache-2.0
#include "core/tensor.h"

#include "core/ops/copy.h"

namespace fovea {

// ---- new storage --------------------------------------------------------------------------------

Tensor Tensor::empty(const Shape& shape, Dtype dtype, Device device) {
  int64_t bytes = size_of(dtype);
  for (int64_t size : shape) {
    FOVEA_CHECK(size >= 0, "tensor: negative size in ", shape);
    // Whatever the other sizes: none of them may be zero only because the product wraps.
    FOVEA_CHECK(!__builtin_mul_overflow(bytes, std::max<int64_t>(1, size), &bytes),
                "tensor: ", dtype, ' ', shape, " passes 2^63 bytes");
  }
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) bytes = 0;
  return Tensor(std::make_shared<Storage>(static_cast<size_t>(bytes), device), 0, shape,
                contiguous_strides(shape), dtype);
}

Tensor Tensor::zeros(const Shape& shape, Dtype dtype, Device device) {
  return full(shape, 0.0, dtype, device);
}

Tensor Tensor::full(const Shape& shape, double value, Dtype dtype, Device device) {
  Tensor out = empty(shape, dtype, device);
  out.fill_(value);
  return out;
}

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
  Tensor out = empty(shape_, dtype_, device());
  out.copy_(*this);
  return out;
}

Tensor Tensor::to(Dtype dtype) const {
  if (dtype == dtype_) return *this;
  Tensor out = empty(shape_, dtype, device());
  out.copy_(*this);
  return out;
}

Tensor Tensor::to(Device device) const {
  if (device == this->device() || !defined()) return *this;
  Tensor out = empty(shape_, dtype_, device);
  out.copy_(*this);
  return out;
}

// ---- description --------------------------------------------------------------------------------

bool Tensor::is_contiguous() const {
  int64_t expected = 1;
  for (int axis = rank() - 1; axis >= 0; --axis) {
    if (shape_[axis] != 1 && strides_[axis] != expected) return false;
    expected *= shape_[axis];
  }
  return true;
}

double Tensor::item() const {
  FOVEA_CHECK(defined() && numel() == 1, "item: expected one element, found shape ", shape_);
  return *to(kCpu).to(Dtype::f64).data<double>();
}

// ---- views --------------------------------------------------------------------------------------

bool Tensor::try_view(const Shape& wanted, Tensor& out) const {
  Shape shape = wanted;
  int64_t known = 1;
  int inferred = -1;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (shape[axis] != -1) {
      known *= shape[axis];
    } else {
      FOVEA_CHECK(inferred < 0, "view: two sizes of ", wanted, " are -1");
      inferred = axis;
    }
  }
  if (inferred >= 0) {
    FOVEA_CHECK(known > 0 && numel() % known == 0, "view: ", shape_, " does not divide into ",
                wanted);
    shape[inferred] = numel() / known;
  }
  FOVEA_CHECK(shape.numel() == numel(), "view: ", shape_, " has ", numel(), " elements, ", wanted,
              " asks for ", shape.numel());
  if (is_contiguous()) {
    out = Tensor(storage_, offset_, shape, contiguous_strides(shape), dtype_);
    return true;
  }
  // Walk both shapes from the last axis: a run of old axes that is contiguous in itself may be cut
  // anew.
  Shape strides = shape;
  int axis = shape.rank() - 1;
  int old = rank() - 1;
  while (axis >= 0) {
    while (old >= 0 && shape_[old] == 1) --old;
    if (shape[axis] == 1 || old < 0) {
      strides[axis] = 1;
      --axis;
      continue;
    }
    int64_t run = shape_[old];
    const int64_t inner = strides_[old];
    while (old > 0 && (shape_[old - 1] == 1 || strides_[old - 1] == inner * run))
      run *= shape_[--old];
    --old;
    int64_t step = inner;
    while (axis >= 0 && run > 1) {
      if (run % shape[axis] != 0) return false;
      run /= shape[axis];
      strides[axis] = step;
      step *= shape[axis--];
    }
  }
  out = Tensor(storage_, offset_, shape, strides, dtype_);
  return true;
}

Tensor Tensor::view(const Shape& shape) const {
  Tensor out;
  FOVEA_CHECK(try_view(shape, out), "view: ", shape_, " with strides ", strides_, " cannot become ",
              shape, " without a copy");
  return out;
}

Tensor Tensor::reshape(const Shape& shape) const {
  Tensor out;
  return try_view(shape, out) ? out : contiguous().view(shape);
}

Tensor Tensor::transpose(int axis_a, int axis_b) const {
  Tensor out = *this;
  std::swap(out.shape_[axis_a], out.shape_[axis_b]);
  std::swap(out.strides_[axis_a], out.strides_[axis_b]);
  return out;
}

Tensor Tensor::permute(std::initializer_list<int> axes) const {
  FOVEA_CHECK(static_cast<int>(axes.size()) == rank(), "permute: ", axes.size(), " axes for ",
              shape_);
  Shape shape, strides;
  unsigned seen = 0;
  for (int axis : axes) {
    const int wrapped = shape_.wrap(axis);
    FOVEA_CHECK((seen & (1u << wrapped)) == 0, "permute: axis ", axis, " of ", shape_,
                " named twice");
    seen |= 1u << wrapped;
    shape.push_back(shape_[wrapped]);
    strides.push_back(strides_[wrapped]);
  }
  return Tensor(storage_, offset_, shape, strides, dtype_);
}

Tensor Tensor::slice(int axis, int64_t begin, int64_t end) const {
  FOVEA_CHECK(begin >= 0 && begin <= end && end <= dim(axis), "slice: [", begin, ", ", end,
              ") of axis ", axis, " of ", shape_);
  Tensor out = *this;
  out.shape_[axis] = end - begin;
  out.offset_ += begin * strides_[axis];
  return out;
}

Tensor Tensor::select(int axis, int64_t index) const {
  return slice(axis, index, index + 1).squeeze(axis);
}

Tensor Tensor::unsqueeze(int axis) const {
  const int at = axis < 0 ? axis + rank() + 1 : axis;
  FOVEA_CHECK(at >= 0 && at <= rank(), "unsqueeze: axis ", axis, " of ", shape_);
  Shape shape, strides;
  for (int i = 0; i <= rank(); ++i) {
    if (i == at) {
      shape.push_back(1);
      strides.push_back(1);
    }
    if (i < rank()) {
      shape.push_back(shape_[i]);
      strides.push_back(strides_[i]);
    }
  }
  return Tensor(storage_, offset_, shape, strides, dtype_);
}

Tensor Tensor::squeeze(int axis) const {
  const int at = shape_.wrap(axis);
  FOVEA_CHECK(shape_[at] == 1, "squeeze: axis ", axis, " of ", shape_, " is not 1");
  Shape shape, strides;
  for (int i = 0; i < rank(); ++i) {
    if (i == at) continue;
    shape.push_back(shape_[i]);
    strides.push_back(strides_[i]);
  }
  return Tensor(storage_, offset_, shape, strides, dtype_);
}

Tensor Tensor::as(Dtype dtype) const {
  const int64_t size = size_of(dtype);
  FOVEA_CHECK(dtype_ == Dtype::u8 && rank() == 1 && is_contiguous() && numel() % size == 0 &&
                  offset_ % size == 0,
              "as: expected whole elements of ", dtype, " in u8 [n], found ", dtype_, ' ', shape_,
              " at byte ", offset_);
  return Tensor(storage_, offset_ / size, {numel() / size}, {1}, dtype);
}

Tensor Tensor::expand(const Shape& shape) const {
  FOVEA_CHECK(shape.rank() >= rank(), "expand: ", shape_, " to the smaller rank ", shape);
  Shape strides = shape;
  for (int axis = 1; axis <= shape.rank(); ++axis) {
    const bool present = axis <= rank();
    const int64_t size = present ? dim(-axis) : 1;
    FOVEA_CHECK(size == shape[-axis] || size == 1, "expand: ", shape_, " does not stretch to ",
                shape);
    strides[-axis] = size == 1 && shape[-axis] != 1 ? 0 : (present ? stride(-axis) : 0);
  }
  return Tensor(storage_, offset_, shape, strides, dtype_);
}

// ---- in place -----------------------------------------------------------------------------------

void Tensor::copy_(const Tensor& source) const { copy(*this, source); }

void Tensor::fill_(double value) const { fill(*this, value); }

void check_same_shape(const char* op, const char* name_a, const Tensor& a, const char* name_b,
                      const Tensor& b) {
  FOVEA_CHECK(a.shape() == b.shape(), op, ": ", name_a, " is ", a.shape(), " but ", name_b, " is ",
              b.shape());
}

}  // namespace fovea
