// SPDX-License-Identifier: Apache-2.0
// Turns a product of tensors into problems of one matrix or one evenly spaced batch, and hands each
// to oneDNN (f32, bf16) or to our own kernel (f64, small problems, and what oneDNN lacks); on a
// card to cuBLASLt. The interpreted device has products computed by the cpu.
#include "core/ops/matmul.h"

#include <optional>
#include <span>
#include <utility>

#include "core/cpu/gemm.h"
#include "core/cpu/isa.h"
#include "core/cpu/onednn.h"
#include "core/graph.h"
#include "core/ops/copy.h"
#include "core/ops/strided.h"
#include "core/parallel.h"
#include "core/scratch.h"
#if defined(FOVEA_CUDA)
#include "core/card/cublas.h"
#endif

namespace fovea {
namespace {

thread_local bool t_tf32 = false;

// One product [batch, m, k] x [batch, k, n]; the strides of MatmulProblem, bases apart.
struct Product : MatmulProblem {
  Device device;
  const std::byte* a = nullptr;
  const std::byte* b = nullptr;
  std::byte* c = nullptr;
  const void* bias_data = nullptr;
};

GemmKind gemm_kind(Dtype in, Dtype out) {
  if (in == Dtype::f64) return GemmKind::f64;
  if (in == Dtype::f32) return GemmKind::f32;
  return out == Dtype::f32 ? GemmKind::bf16_to_f32 : GemmKind::bf16_to_bf16;
}

// bias, when given, is f32 (f64 for f64).
void own_gemm(const Product& p) {
  const int64_t tiles_m = (p.m + kGemmTileRows - 1) / kGemmTileRows;
  const int64_t tiles_n = (p.n + kGemmTileColumns - 1) / kGemmTileColumns;
  const int64_t tile_work = std::min(p.m, kGemmTileRows) * std::min(p.n, kGemmTileColumns) * p.k;
  constexpr int64_t kWorthAThread = 1 << 19;  // multiply-adds: some 10 us
  const int64_t in_bytes = size_of(p.in), out_bytes = size_of(p.out);
  parallel_for(0, p.batch * tiles_m * tiles_n, kWorthAThread / std::max<int64_t>(tile_work, 1) + 1,
               [&](int64_t begin, int64_t end) {
                 const Scratch<std::byte> scratch(kGemmScratchBytes);
                 GemmCall call;
                 call.kind = gemm_kind(p.in, p.out);
                 call.m = p.m, call.n = p.n, call.k = p.k;
                 call.a_row = p.a_row, call.a_column = p.a_column;
                 call.b_row = p.b_row, call.b_column = p.b_column;
                 call.c_row = p.c_row;
                 call.bias = p.bias_data;
                 call.accumulate = p.accumulate;
                 for (int64_t t = begin; t < end; ++t) {
                   const int64_t batch = t / (tiles_m * tiles_n);
                   const int64_t i = t / tiles_n % tiles_m * kGemmTileRows;
                   const int64_t j = t % tiles_n * kGemmTileColumns;
                   call.a = p.a + batch * p.a_batch * in_bytes;
                   call.b = p.b + batch * p.b_batch * in_bytes;
                   call.c = p.c + batch * p.c_batch * out_bytes;
                   FOVEA_SIMD_CALL(gemm_tile, call, i, std::min(kGemmTileRows, p.m - i), j,
                                   std::min(kGemmTileColumns, p.n - j), scratch.data());
                 }
               });
}

// Below this many multiply-adds per matrix the cost of calling oneDNN is felt.
bool is_small(const Product& p) { return p.m <= 64 && p.n <= 64 && p.k <= 64; }

// Rows of a piece of a product: a multiple of them, which is one of every kernel's block of rows;
// or, of fixed products, so many.
constexpr int64_t kPieceRows = 64, kFixedRows = 256;

thread_local bool t_fixed = false;

void run(const Product& p) {
#if defined(FOVEA_CUDA)
  if (!p.device.is_cpu()) return cublas::matmul(p, p.c, p.a, p.b, p.bias_data, p.device);
#endif
  const bool known = p.in == Dtype::f32 || (p.in == Dtype::bf16 && cpu_isa() == Isa::avx512_bf16);
  if (!known || is_small(p)) return own_gemm(p);
  const auto multiply_piece = [](const Product& piece) {
    if (!onednn::matmul(piece, piece.c, piece.a, piece.b, piece.bias_data)) own_gemm(piece);
  };
  const bool fixed = t_fixed;
  const int64_t rows = fixed ? kFixedRows : kPieceRows, blocks = (p.m + rows - 1) / rows;
  const int64_t pieces =
      fixed ? p.batch > 1 ? 1 : blocks : std::min<int64_t>(num_threads(), blocks);
  if (!fixed && (p.batch > 1 || pieces < num_threads() || detail::in_parallel_region()))
    return multiply_piece(p);
  // We share the rows out, a product of one thread each: on two cores 1 to 8 % (f32) and 1 to 18 %
  // (bf16) faster than oneDNN's own sharing, most for gradients of weights.
  parallel_for_each(0, pieces, [&](int64_t i) {
    std::optional<ThreadShare> alone;
    if (fixed) alone.emplace(1);
    const int64_t from = blocks * i / pieces * rows;
    Product piece = p;
    piece.m = std::min(p.m, blocks * (i + 1) / pieces * rows) - from;
    piece.a += from * p.a_row * size_of(p.in);
    piece.c += from * p.c_row * size_of(p.out);
    multiply_piece(piece);
  });
}

// A layout that every kernel reads: unit stride along one axis and no overlap along the other.
bool is_matrix(const Tensor& t) {
  const int64_t rows = t.dim(-2), columns = t.dim(-1);
  const int64_t row = t.stride(-2), column = t.stride(-1);
  return (column == 1 && (rows == 1 || row >= columns)) ||
         (row == 1 && (columns == 1 || column >= rows)) || (rows == 1 && columns == 1);
}

// Strides of a matrix with those of size-1 axes replaced by what a plain matrix would have.
struct MatrixStrides {
  int64_t row, column;
  explicit MatrixStrides(const Tensor& t) : row(t.stride(-2)), column(t.stride(-1)) {
    if (t.dim(-1) == 1 && column != 1) {
      if (row == 1)
        column = std::max<int64_t>(column, t.dim(-2));
      else
        column = 1;
    }
    if (t.dim(-2) == 1 && row != 1) row = column == 1 ? t.dim(-1) : 1;
    if (t.dim(-2) == 1 && column == 1) row = t.dim(-1);
  }
};

Shape leading(const Shape& shape) {
  return Shape(std::span<const int64_t>(shape.begin(), static_cast<size_t>(shape.rank() - 2)));
}

Shape result_shape(const Tensor& a, const Tensor& b) {
  FOVEA_CHECK(a.rank() >= 2 && b.rank() >= 2, "matmul: a is ", a.shape(), " and b ", b.shape(),
              "; both need at least two axes");
  FOVEA_CHECK(a.dim(-1) == b.dim(-2), "matmul: a is ", a.shape(), " and b ", b.shape(),
              "; the last axis of a and the last but one of b differ (", a.dim(-1),
              " != ", b.dim(-2), ")");
  FOVEA_CHECK(b.rank() == 2 || leading(a.shape()) == leading(b.shape()), "matmul: a is ", a.shape(),
              " and b ", b.shape(),
              "; the leading axes differ (they must be equal, or b have two axes)");
  FOVEA_CHECK(a.dtype() == b.dtype(), "matmul: a ", a.shape(), " is ", a.dtype(), " and b ",
              b.shape(), " is ", b.dtype(), "; convert one with Tensor::to");
  FOVEA_CHECK(is_floating(a.dtype()), "matmul: expected f32, bf16 or f64, found ", a.dtype());
  FOVEA_CHECK(a.device() == b.device(), "matmul: a ", a.shape(), " is on ", a.device(), " and b ",
              b.shape(), " on ", b.device(), "; move one with Tensor::to");
  FOVEA_CHECK(a.device().is_cpu() || a.dtype() != Dtype::f64,
              "matmul: f64 is for the cpu; found it on ", a.device());
  Shape shape = a.shape();
  shape[-1] = b.dim(-1);
  return shape;
}

void check_result_dtype(const Tensor& a, Dtype out) {
  FOVEA_CHECK(out == a.dtype() || (a.dtype() == Dtype::bf16 && out == Dtype::f32),
              "matmul: the product of ", a.dtype(), " tensors is ", a.dtype(),
              a.dtype() == Dtype::bf16 ? " or f32" : "", ", asked for ", out);
}

Tensor rounded_to_tf32(const Tensor& t) {
  const Tensor rounded = t.clone();
  for (float& x : std::span(rounded.data<float>(), static_cast<size_t>(rounded.numel())))
    x = round_to_tf32(x);
  return rounded;
}

// out's last stride is 1 (or its last axis has size 1).
void multiply(const Tensor& out, const Tensor& a_given, const Tensor& b_given, const Tensor& bias,
              bool accumulate) {
  if (out.numel() == 0) return;
  if (out.device().kind == Device::Kind::interpreted) {
    const bool rounds = t_tf32 && a_given.dtype() == Dtype::f32;
    return host_work(out.device(), [=] {
      const Tensor here = accumulate ? out.to(kCpu) : Tensor::empty(out.shape(), out.dtype());
      const auto operand = [&](const Tensor& t) {
        return rounds ? rounded_to_tf32(t.to(kCpu)) : t.to(kCpu);
      };
      multiply(here, operand(a_given), operand(b_given), bias.to(kCpu), accumulate);
      out.copy_(here);
    });
  }
  if (a_given.dim(-1) == 0) {
    if (bias.defined())
      copy(out, bias);
    else if (!accumulate)
      out.zero_();
    return;
  }
  const Tensor a = is_matrix(a_given) ? a_given : a_given.contiguous();
  const Tensor b = is_matrix(b_given) ? b_given : b_given.contiguous();
  Product p;
  p.device = out.device();
  p.in = a.dtype();
  p.out = out.dtype();
  p.m = a.dim(-2), p.k = a.dim(-1), p.n = b.dim(-1);
  const MatrixStrides as(a), bs(b), cs(out);
  p.a_row = as.row, p.a_column = as.column;
  p.b_row = bs.row, p.b_column = bs.column;
  p.c_row = cs.row;
  p.accumulate = accumulate;
  p.tf32 = t_tf32 && !p.device.is_cpu() && p.in == Dtype::f32;
  Tensor wide_bias;
  if (bias.defined()) {
    const Dtype added = !p.device.is_cpu()   ? p.out  // as cuBLASLt wants it
                        : p.in == Dtype::f64 ? Dtype::f64
                                             : Dtype::f32;
    wide_bias = bias.to(added).contiguous();
    p.bias = wide_bias.dtype();
    p.bias_data = wide_bias.raw();
  }
  // Leading axes: merged where they can be; the last of them becomes the batch, or joins m when b
  // is the same for all.
  const Shape batch_shape = leading(a.shape());
  Shape b_leading = leading(b.shape());
  if (b.rank() == 2) {
    b_leading = batch_shape;
    for (int axis = 0; axis < b_leading.rank(); ++axis) b_leading[axis] = 0;
  } else {
    b_leading = leading(b.strides());
  }
  const StridedLoop<3> loop(batch_shape, {leading(out.strides()), leading(a.strides()), b_leading});
  p.batch = loop.shape[-1];
  if (p.batch > 1) {
    p.c_batch = loop.strides[0][-1], p.a_batch = loop.strides[1][-1],
    p.b_batch = loop.strides[2][-1];
  }
  if (p.batch > 1 && p.b_batch == 0) {
    const bool single = p.m == 1 && p.a_column == 1;
    if (single && p.a_batch >= p.k && p.c_batch >= p.n) p.a_row = p.a_batch, p.c_row = p.c_batch;
    if (p.a_batch == p.m * p.a_row && p.c_batch == p.m * p.c_row && p.a_column == 1) {
      p.m *= p.batch;
      p.batch = 1, p.a_batch = 0, p.c_batch = 0;
    }
  }
  const int64_t outer = loop.shape.numel() / loop.shape[-1];
  for (int64_t index = 0; index < outer; ++index) {
    std::array<int64_t, 3> offset{};
    int64_t rest = index;
    for (int axis = loop.shape.rank() - 2; axis >= 0; --axis) {
      for (size_t t = 0; t < 3; ++t) offset[t] += rest % loop.shape[axis] * loop.strides[t][axis];
      rest /= loop.shape[axis];
    }
    p.c = static_cast<std::byte*>(out.raw()) + offset[0] * size_of(out.dtype());
    p.a = static_cast<const std::byte*>(a.raw()) + offset[1] * size_of(a.dtype());
    p.b = static_cast<const std::byte*>(b.raw()) + offset[2] * size_of(b.dtype());
    run(p);
  }
}

// One product of two matrices with its GELU. False where the device has none.
bool multiply_gelu(const Tensor& c, const Tensor& pre, const Tensor& a, const Tensor& b,
                   const Tensor& bias) {
  FOVEA_CHECK(
      a.rank() == 2 && b.rank() == 2 && bias.shape() == Shape{b.dim(1)} && pre.shape() == c.shape(),
      "matmul_gelu: a is ", a.shape(), ", b ", b.shape(), ", bias ", bias.shape(), " and pre ",
      pre.shape(), "; expected [m, k], [k, n], [n] and [m, n]");
#if defined(FOVEA_CUDA)
  if (a.device().kind == Device::Kind::cuda && a.numel() > 0 && b.numel() > 0 && is_matrix(a) &&
      is_matrix(b)) {
    MatmulProblem p;
    p.in = a.dtype(), p.out = c.dtype(), p.bias = bias.dtype();
    p.m = a.dim(0), p.n = b.dim(1), p.k = a.dim(1);
    const MatrixStrides as(a), bs(b);
    p.a_row = as.row, p.a_column = as.column;
    p.b_row = bs.row, p.b_column = bs.column;
    p.c_row = p.n;
    p.epilogue = Epilogue::gelu;
    p.tf32 = t_tf32 && p.in == Dtype::f32;
    return cublas::matmul_gelu(p, c.raw(), pre.raw(), a.raw(), b.raw(), bias.raw(), a.device());
  }
#endif
  return false;
}

}  // namespace

Tf32Scope::Tf32Scope(bool allowed) : before_(std::exchange(t_tf32, allowed)) {}
Tf32Scope::~Tf32Scope() { t_tf32 = before_; }

Tensor matmul(const Tensor& a, const Tensor& b, const MatmulOptions& options) {
  const Shape shape = result_shape(a, b);
  const Dtype dtype = options.dtype.value_or(a.dtype());
  check_result_dtype(a, dtype);
  if (options.bias.defined()) {
    FOVEA_CHECK(options.bias.shape() == Shape{b.dim(-1)} && is_floating(options.bias.dtype()),
                "matmul: bias is ", options.bias.dtype(), ' ', options.bias.shape(),
                " for the product of a ", a.shape(), " and b ", b.shape(),
                "; expected a floating [", b.dim(-1), ']');
    FOVEA_CHECK(options.bias.device() == a.device(), "matmul: bias ", options.bias.shape(),
                " is on ", options.bias.device(), " and a on ", a.device(),
                "; move one with Tensor::to");
  }
  const Tensor out = Tensor::empty(shape, dtype, a.device());
  multiply(out, a, b, options.bias, false);
  return out;
}

void matmul_into(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
  const Shape shape = result_shape(a, b);
  FOVEA_CHECK(out.shape() == shape, "matmul: out is ", out.shape(), " for a ", a.shape(), " and b ",
              b.shape(), "; expected ", shape);
  FOVEA_CHECK(out.device() == a.device(), "matmul: out ", out.shape(), " is on ", out.device(),
              " and a on ", a.device(), "; move one with Tensor::to");
  check_result_dtype(a, out.dtype());
  if (out.stride(-1) == 1 || out.dim(-1) == 1) return multiply(out, a, b, Tensor(), accumulate);
  FOVEA_CHECK((out.stride(-2) == 1 || out.dim(-2) == 1) && (b.rank() > 2 || a.rank() == 2),
              "matmul: out ", out.shape(), " has strides ", out.strides(),
              "; one of the last two must be 1 (the last, when b has no leading axes)");
  multiply(out.transpose(-1, -2), b.transpose(-1, -2), a.transpose(-1, -2), Tensor(),
           accumulate);  // out^T = b^T a^T
}

FixedProducts::FixedProducts(bool on) : before_(std::exchange(t_fixed, on)) {}
FixedProducts::~FixedProducts() { t_fixed = before_; }

std::optional<GeluProduct> matmul_gelu(const Tensor& a, const Tensor& b, const Tensor& bias) {
  const Shape shape = result_shape(a, b);
  if (a.device().kind != Device::Kind::cuda) return std::nullopt;
  const GeluProduct made{Tensor::empty(shape, a.dtype(), a.device()),
                         Tensor::empty(shape, a.dtype(), a.device())};
  if (!multiply_gelu(made.y, made.pre, a, b, bias.to(a.dtype()).contiguous())) return std::nullopt;
  return made;
}

}  // namespace fovea
