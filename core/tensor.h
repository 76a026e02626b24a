// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tensor: a handle on shared storage plus shape, strides, dtype and device. Copying a Tensor copies
// the handle. Views (slice, transpose, ...) share storage; functions that make new storage say so.
// No gradients here.

#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "core/allocator.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/shape.h"

namespace fovea {

// One allocation, freed with its last handle.
class Storage {
 public:
  Storage(size_t bytes, Device device)
      : group_(MemoryLabel::current()),
        data_(allocate(bytes, device, group_)),
        bytes_(bytes),
        device_(device) {}
  ~Storage() { deallocate(data_, bytes_, device_, group_); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  void set_group(MemoryGroup group) {
    if (group == group_) return;
    regroup(bytes_, device_, group_, group);
    group_ = group;
  }

 private:
  MemoryGroup group_;
  void* data_;
  size_t bytes_;
  Device device_;
};

class Tensor {
 public:
  // An absent tensor: defined() is false. Stands for "no gradient", "no bias".
  Tensor() = default;

  // ---- new storage ------------------------------------------------------------------------------
  static Tensor empty(const Shape& shape, Dtype dtype = Dtype::f32, Device device = kCpu);
  static Tensor zeros(const Shape& shape, Dtype dtype = Dtype::f32, Device device = kCpu);
  static Tensor full(const Shape& shape, double value, Dtype dtype = Dtype::f32,
                     Device device = kCpu);
  static Tensor empty_like(const Tensor& other) {
    return empty(other.shape(), other.dtype(), other.device());
  }
  static Tensor zeros_like(const Tensor& other) {
    return zeros(other.shape(), other.dtype(), other.device());
  }
  // Values in row-major order; throws unless values.size() == shape.numel().
  template <typename T>
  static Tensor from(std::span<const T> values, const Shape& shape, Device device = kCpu);
  template <typename T>
  static Tensor from(const std::vector<T>& values, const Shape& shape, Device device = kCpu) {
    return from(std::span<const T>(values), shape, device);
  }
  // Row-major copy; the same handle when already contiguous.
  Tensor contiguous() const;
  Tensor clone() const;
  // Converted copy (bf16 rounds to nearest even); the same handle when the dtype is already right.
  Tensor to(Dtype dtype) const;
  // Copy on another device; the same handle when it is already there.
  Tensor to(Device device) const;

  // ---- description ------------------------------------------------------------------------------
  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }  // in elements
  int rank() const { return shape_.rank(); }
  int64_t dim(int axis) const { return shape_[axis]; }
  int64_t stride(int axis) const { return strides_[axis]; }
  int64_t numel() const { return shape_.numel(); }
  int64_t bytes() const { return numel() * size_of(dtype_); }
  Dtype dtype() const { return dtype_; }
  Device device() const { return storage_ ? storage_->device() : kCpu; }
  bool is_contiguous() const;
  bool shares_storage_with(const Tensor& other) const { return storage_ == other.storage_; }
  // Whether no other tensor shares its storage.
  bool is_sole() const { return storage_.use_count() == 1; }
  // What the storage counts to from now on, in place of the label under which it was made.
  void set_memory_group(MemoryGroup group) const {
    if (storage_) storage_->set_group(group);
  }

  // First element, on its device. data<T>() throws unless T is the dtype.
  template <typename T>
  T* data() const {
    FOVEA_CHECK(dtype_of<T> == dtype_, "tensor ", shape_, ": asked for ", dtype_of<T>,
                " data of a ", dtype_, " tensor");
    return static_cast<T*>(raw());
  }
  void* raw() const {
    return storage_ ? static_cast<std::byte*>(storage_->data()) + offset_ * size_of(dtype_)
                    : nullptr;
  }
  // The only element, converted; throws unless numel() == 1. On a GPU this waits for the stream.
  double item() const;
  // Row-major copy of the values, converted.
  template <typename T>
  std::vector<T> to_vector() const;

  // ---- views ------------------------------------------------------------------------------------
  // Same elements, new shape; one size may be -1. Throws when the strides do not allow it.
  Tensor view(const Shape& shape) const;
  // view() where possible, else a contiguous copy.
  Tensor reshape(const Shape& shape) const;
  Tensor transpose(int axis_a, int axis_b) const;
  Tensor permute(std::initializer_list<int> axes) const;
  // Elements [begin, end) of one axis.
  Tensor slice(int axis, int64_t begin, int64_t end) const;
  // One index of one axis; the axis goes away.
  Tensor select(int axis, int64_t index) const;
  Tensor unsqueeze(int axis) const;
  Tensor squeeze(int axis) const;
  // The bytes of a contiguous u8 tensor [n] as [n / size] elements of another dtype, on whose
  // boundary they begin.
  Tensor as(Dtype dtype) const;
  // Size-1 (and missing leading) axes stretched with stride 0.
  Tensor expand(const Shape& shape) const;

  // ---- in place ---------------------------------------------------------------------------------
  // Copies (and converts) source into this; source broadcasts. Const: the handle does not change.
  void copy_(const Tensor& source) const;
  void fill_(double value) const;
  void zero_() const { fill_(0.0); }

 private:
  Tensor(std::shared_ptr<Storage> storage, int64_t offset, const Shape& shape, const Shape& strides,
         Dtype dtype)
      : storage_(std::move(storage)),
        offset_(offset),
        shape_(shape),
        strides_(strides),
        dtype_(dtype) {}
  bool try_view(const Shape& shape, Tensor& out) const;

  std::shared_ptr<Storage> storage_;
  int64_t offset_ = 0;  // in elements
  Shape shape_;
  Shape strides_;
  Dtype dtype_ = Dtype::f32;
};

// Throws naming `op` unless the two shapes are equal.
void check_same_shape(const char* op, const char* name_a, const Tensor& a, const char* name_b,
                      const Tensor& b);

template <typename T>
Tensor Tensor::from(std::span<const T> values, const Shape& shape, Device device) {
  FOVEA_CHECK(static_cast<int64_t>(values.size()) == shape.numel(), "tensor: ", values.size(),
              " values for shape ", shape);
  Tensor out = empty(shape, dtype_of<T>);
  if (!values.empty()) std::memcpy(out.raw(), values.data(), values.size_bytes());
  return out.to(device);
}

template <typename T>
std::vector<T> Tensor::to_vector() const {
  const Tensor flat = to(kCpu).to(dtype_of<T>).contiguous();
  const T* begin = flat.data<T>();
  return std::vector<T>(begin, begin + flat.numel());
}

}  // namespace fovea
