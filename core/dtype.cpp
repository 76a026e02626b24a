// SPDX-License-Identifier: Apache-2.0
#include "core/dtype.h"

#include <string>

namespace fovea {

Dtype parse_dtype(std::string_view text) {
  for (Dtype dtype :
       {Dtype::f32, Dtype::bf16, Dtype::f64, Dtype::i64, Dtype::i32, Dtype::u8, Dtype::boolean}) {
    if (name(dtype) == text) return dtype;
  }
  detail::fail("dtype: expected f32, bf16, f64, i64, i32, u8 or bool, found \"", std::string(text),
               '"');
}

}  // namespace fovea
