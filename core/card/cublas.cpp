// SPDX-License-Identifier: Apache-2.0
// cuBLASLt's matrices are column-major, so the product it is asked for is c^T = b^T a^T: a
// row-major matrix is the column-major one of its transpose.
#include "core/card/cublas.h"

#include <cublasLt.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "core/card/library.h"
#include "core/card/runtime.h"
#include "core/tensor.h"

namespace fovea::cublas {
namespace {

constexpr size_t kMostWorkspace = size_t{32} << 20;  // bytes; what Hopper's algorithms may want
constexpr uint32_t kMostAlignment = 256;             // bytes; beyond it nothing improves

struct Api {
  cuda::Library library{"libcublasLt.so.13", "libcublasLt.so.12"};
  FOVEA_LIBRARY_FUNCTION(cublasLtCreate);
  FOVEA_LIBRARY_FUNCTION(cublasLtGetStatusString);
  FOVEA_LIBRARY_FUNCTION(cublasLtMatmul);
  FOVEA_LIBRARY_FUNCTION(cublasLtMatmulAlgoGetHeuristic);
  FOVEA_LIBRARY_FUNCTION(cublasLtMatmulDescCreate);
  FOVEA_LIBRARY_FUNCTION(cublasLtMatmulDescDestroy);
  FOVEA_LIBRARY_FUNCTION(cublasLtMatmulDescSetAttribute);
  FOVEA_LIBRARY_FUNCTION(cublasLtMatmulPreferenceCreate);
  FOVEA_LIBRARY_FUNCTION(cublasLtMatmulPreferenceDestroy);
  FOVEA_LIBRARY_FUNCTION(cublasLtMatmulPreferenceSetAttribute);
  FOVEA_LIBRARY_FUNCTION(cublasLtMatrixLayoutCreate);
  FOVEA_LIBRARY_FUNCTION(cublasLtMatrixLayoutDestroy);
  FOVEA_LIBRARY_FUNCTION(cublasLtMatrixLayoutSetAttribute);
};

const Api& api() {
  static const auto* loaded = new Api;  // never destroyed: the library stays open
  return *loaded;
}

void check(cublasStatus_t status, const char* call, const MatmulProblem& p) {
  FOVEA_CHECK(status == CUBLAS_STATUS_SUCCESS, "cublasLt ", call, ": ",
              api().cublasLtGetStatusString(status), " (", p.in, " [", p.batch, ", ", p.m, ", ",
              p.k, "] x [", p.k, ", ", p.n, "] -> ", p.out, p.bias ? ", with bias" : "",
              p.epilogue != Epilogue::plain ? ", with gelu" : "",
              p.accumulate ? ", accumulated)" : ")");
}

// A handle belongs to a card.
cublasLtHandle_t handle(int card, const MatmulProblem& p) {
  static std::mutex mutex;
  static std::map<int, cublasLtHandle_t> handles;
  const std::lock_guard lock(mutex);
  cublasLtHandle_t& found = handles[card];
  if (found == nullptr) check(api().cublasLtCreate(&found), "create", p);
  return found;
}

cudaDataType_t data_type(Dtype dtype) { return dtype == Dtype::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

class Layout {
 public:
  Layout(const MatmulProblem& p, Dtype dtype, int64_t rows, int64_t columns, int64_t leading,
         int64_t batch_stride) {
    check(api().cublasLtMatrixLayoutCreate(&layout_, data_type(dtype), static_cast<uint64_t>(rows),
                                           static_cast<uint64_t>(columns), leading),
          "layout", p);
    const auto batch = static_cast<int32_t>(p.batch);
    set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, batch, p);
    set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, batch_stride, p);
  }
  ~Layout() { api().cublasLtMatrixLayoutDestroy(layout_); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  template <typename T>
  void set(cublasLtMatrixLayoutAttribute_t attribute, const T& value, const MatmulProblem& p) {
    check(api().cublasLtMatrixLayoutSetAttribute(layout_, attribute, &value, sizeof value),
          "layout", p);
  }
  cublasLtMatrixLayout_t layout_ = nullptr;
};

class Operation {
 public:
  Operation(const MatmulProblem& p, const void* bias, const void* aux) {
    const cublasComputeType_t compute = p.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    check(api().cublasLtMatmulDescCreate(&operation_, compute, CUDA_R_32F), "operation", p);
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.b_column == 1 ? CUBLAS_OP_N : CUBLAS_OP_T, p);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.a_column == 1 ? CUBLAS_OP_N : CUBLAS_OP_T, p);
    if (!p.bias) return;
    set(CUBLASLT_MATMUL_DESC_EPILOGUE,
        p.epilogue == Epilogue::plain ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
        p);
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(*p.bias), p);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias, p);
    if (p.epilogue == Epilogue::plain) return;
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux, p);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.c_row, p);
  }
  ~Operation() { api().cublasLtMatmulDescDestroy(operation_); }
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;
  cublasLtMatmulDesc_t get() const { return operation_; }

 private:
  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value, const MatmulProblem& p) {
    check(api().cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof value),
          "operation", p);
  }
  cublasLtMatmulDesc_t operation_ = nullptr;
};

uint32_t alignment(const void* at) {
  const auto address = reinterpret_cast<uintptr_t>(at) | kMostAlignment;
  return static_cast<uint32_t>(address & (~address + 1));  // its lowest bit
}

// What the choice of an algorithm depends on.
struct Alignments {
  uint32_t a, b, c, bias, aux;
};
using Key = std::array<int64_t, 24>;
Key key_of(const MatmulProblem& p, const Alignments& at, int card) {
  return {static_cast<int64_t>(p.in),
          static_cast<int64_t>(p.out),
          p.bias ? 1 : 0,
          static_cast<int64_t>(p.epilogue),
          p.accumulate ? 1 : 0,
          p.tf32 ? 1 : 0,
          p.batch,
          p.m,
          p.n,
          p.k,
          p.a_batch,
          p.a_row,
          p.a_column,
          p.b_batch,
          p.b_row,
          p.b_column,
          p.c_batch,
          p.c_row,
          at.a,
          at.b,
          at.c,
          at.bias,
          at.aux,
          card};
}

// Absent when there is none.
using Choice = std::optional<cublasLtMatmulHeuristicResult_t>;
Choice choose(const MatmulProblem& p, cublasLtHandle_t on, const Operation& operation,
              const Layout& a, const Layout& b, const Layout& c, const Alignments& at) {
  cublasLtMatmulPreference_t made = nullptr;
  check(api().cublasLtMatmulPreferenceCreate(&made), "preference", p);
  const auto destroy = [](cublasLtMatmulPreference_t preference) {
    api().cublasLtMatmulPreferenceDestroy(preference);
  };
  const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, decltype(destroy)> preference(made,
                                                                                        destroy);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check(api().cublasLtMatmulPreferenceSetAttribute(made, attribute, &value, sizeof value),
          "preference", p);
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMostWorkspace);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, at.b);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, at.a);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, at.c);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, at.c);
  cublasLtMatmulHeuristicResult_t result{};
  int count = 0;
  const cublasStatus_t status = api().cublasLtMatmulAlgoGetHeuristic(
      on, operation.get(), b.get(), a.get(), c.get(), c.get(), made, 1, &result, &count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && count == 0))
    return std::nullopt;
  check(status, "choice of an algorithm", p);
  check(result.state, "choice of an algorithm", p);
  return result;
}

// False when there is no algorithm.
bool multiply(const MatmulProblem& p, void* c, const void* aux, const void* a, const void* b,
              const void* bias, Device device) {
  const Operation operation(p, bias, aux);
  const bool a_plain = p.a_column == 1, b_plain = p.b_column == 1;
  const Layout a_layout(p, p.in, a_plain ? p.k : p.m, a_plain ? p.m : p.k,
                        a_plain ? p.a_row : p.a_column, p.a_batch);
  const Layout b_layout(p, p.in, b_plain ? p.n : p.k, b_plain ? p.k : p.n,
                        b_plain ? p.b_row : p.b_column, p.b_batch);
  const Layout c_layout(p, p.out, p.n, p.m, p.c_row, p.c_batch);
  const cublasLtHandle_t on = handle(device.index, p);
  const Alignments at{alignment(a), alignment(b), alignment(c), alignment(bias), alignment(aux)};
  Choice chosen;
  {
    static std::mutex mutex;
    static std::map<Key, Choice> cache;
    constexpr size_t kMostProblems = 4096;  // a stream of ever new shapes starts over
    const std::lock_guard lock(mutex);
    const Key key = key_of(p, at, device.index);
    auto found = cache.find(key);
    if (found == cache.end()) {
      if (cache.size() >= kMostProblems) cache.clear();
      found = cache.emplace(key, choose(p, on, operation, a_layout, b_layout, c_layout, at)).first;
    }
    chosen = found->second;
  }
  if (!chosen) return false;
  const Tensor workspace =
      Tensor::empty({static_cast<int64_t>(chosen->workspaceSize)}, Dtype::u8, device);
  const float one = 1.0f, beta = p.accumulate ? 1.0f : 0.0f;
  check(api().cublasLtMatmul(on, operation.get(), &one, b, b_layout.get(), a, a_layout.get(), &beta,
                             c, c_layout.get(), c, c_layout.get(), &chosen->algo, workspace.raw(),
                             chosen->workspaceSize,
                             static_cast<cudaStream_t>(stream_of(device).handle)),
        "matmul", p);
  return true;
}

}  // namespace

void matmul(const MatmulProblem& p, void* c, const void* a, const void* b, const void* bias,
            Device device) {
  if (!multiply(p, c, nullptr, a, b, bias, device))
    check(CUBLAS_STATUS_NOT_SUPPORTED, "choice of an algorithm", p);
}

bool matmul_gelu(const MatmulProblem& p, void* c, void* aux, const void* a, const void* b,
                 void* bias, Device device) {
  // What cuBLASLt asks of the auxiliary matrix.
  constexpr int64_t kLeadingUnit = 8;     // elements
  constexpr uint32_t kAuxAlignment = 16;  // bytes
  return p.c_row % kLeadingUnit == 0 && alignment(aux) >= kAuxAlignment &&
         multiply(p, c, aux, a, b, bias, device);
}

}  // namespace fovea::cublas
