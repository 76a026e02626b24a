// SPDX-License-Identifier: Apache-2.0
#pragma once
// Matrix products. f32 and f64 give their own dtype; bf16 accumulates in f32 and gives bf16 or f32.
// a and b have one dtype and one device: convert with Tensor::to before. Transposed views are read
// in place when one of their last two strides is 1 (other strides cost a copy), so that  x W^T,  dY
// W  and  dY^T X  need no transposition.

#include <optional>

#include "core/tensor.h"

namespace fovea {

struct MatmulOptions {
  // [n], added to every row; any floating dtype. On a card it is rounded to the result's first.
  Tensor bias = {};
  std::optional<Dtype> dtype = {};  // of the result; default: that of a
};

// a [..., m, k] x b [..., k, n] -> [..., m, n]: equal leading axes, or b [k, n] for all of them
// (the leading axes of a then join m where its strides allow). An empty k gives zeros (plus bias).
// Throws naming both shapes when they do not fit.
Tensor matmul(const Tensor& a, const Tensor& b, const MatmulOptions& options = {});

// out = a b, or out += a b. out [..., m, n] is any view of which one of the last two strides is 1;
// it may not overlap a or b.
void matmul_into(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate);

// Which rounding a product of oneDNN has may depend on how many threads make it. While one of these
// lives on this thread, products on the cpu are cut by their sizes alone, and each piece is made by
// one thread: the same bits for any number of threads, with less to share for products of few rows.
class FixedProducts {
 public:
  explicit FixedProducts(bool on = true);
  ~FixedProducts();
  FixedProducts(const FixedProducts&) = delete;
  FixedProducts& operator=(const FixedProducts&) = delete;

 private:
  bool before_;
};

// While one lives, f32 products that this host thread asks of a GPU device may round their operands
// to tf32 (10 bits of mantissa), as tensor cores take them; sums stay f32. A card rounds where that
// is faster, the interpreted device always. By default nothing is rounded. On the cpu it means
// nothing.
class Tf32Scope {
 public:
  explicit Tf32Scope(bool allowed = true);
  ~Tf32Scope();
  Tf32Scope(const Tf32Scope&) = delete;
  Tf32Scope& operator=(const Tf32Scope&) = delete;

 private:
  bool before_;
};

// ---- a product with a GELU --------------------------------------------------------------------
// In its tanh form (1606.08415), done before the product is stored. Absent where the device's
// library has no such product (all but cuBLASLt's, and odd shapes there): then matmul and an
// activation give as much.

// y = gelu(pre), pre = a b + bias: a [m, k], b [k, n], bias [n] -> [m, n], in a's dtype.
struct GeluProduct {
  Tensor y, pre;
};
std::optional<GeluProduct> matmul_gelu(const Tensor& a, const Tensor& b, const Tensor& bias);

}  // namespace fovea
