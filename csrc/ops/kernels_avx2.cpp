// The kernels for x86-64 with AVX2 and FMA, compiled into a library for any x86-64 and chosen at
// run time. All includes come before the target is selected, so that shared code does not use it.
#include <algorithm>
#include <cstddef>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace pyinv::ops {
namespace {
#define PYINV_VECTOR 8
#define PYINV_MULTIPLY_ADD(factor, value, sum) _mm256_fmadd_ps(_mm256_set1_ps(factor), value, sum)
#include "kernels_loops.h"
}  // namespace
}  // namespace pyinv::ops

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace pyinv::ops {

const Kernels* avx2_kernels() {
  static const Kernels table = make_kernels("avx2");
  static const bool usable = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return usable ? &table : nullptr;
}

}  // namespace pyinv::ops

#else

namespace pyinv::ops {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace pyinv::ops

#endif
