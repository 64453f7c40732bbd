// The kernels for x86-64 with AVX-512; see kernels_avx2.cpp.
#include <algorithm>
#include <cstddef>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,fma")
#endif

namespace pyinv::ops {
namespace {
#define PYINV_VECTOR 16
// 24 sums, with 8 of 32 registers left for the operands.
#define PYINV_ROWS 12
#define PYINV_MULTIPLY_ADD(factor, value, sum) _mm512_fmadd_ps(_mm512_set1_ps(factor), value, sum)
#include "kernels_loops.h"
}  // namespace
}  // namespace pyinv::ops

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace pyinv::ops {

std::span<const Kernels> avx512_kernels() {
  static const Kernels tables[] = {make_kernels<2>("avx512"), make_kernels<1>("avx512")};
  static const bool usable = __builtin_cpu_supports("avx512f") &&
                             __builtin_cpu_supports("avx512dq") &&
                             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  return usable ? std::span<const Kernels>(tables) : std::span<const Kernels>();
}

}  // namespace pyinv::ops

#else

namespace pyinv::ops {
std::span<const Kernels> avx512_kernels() { return {}; }
}  // namespace pyinv::ops

#endif
