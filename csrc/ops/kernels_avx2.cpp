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
// These leave 4 of 16 registers for the operands, and 12 independent sums hide the latency of the
// multiply-add on every processor of the last ten years (8 to 10 are needed).
#define PYINV_ROWS 6
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

std::span<const Kernels> avx2_kernels() {
  static const Kernels tables[] = {make_kernels<2>("avx2")};
  static const bool usable = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return usable ? std::span<const Kernels>(tables) : std::span<const Kernels>();
}

}  // namespace pyinv::ops

#else

namespace pyinv::ops {
std::span<const Kernels> avx2_kernels() { return {}; }
}  // namespace pyinv::ops

#endif
