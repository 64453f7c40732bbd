// The kernels for every processor that the compiler targets, with registers of 4 floats.
#include <algorithm>
#include <cstddef>

#include "kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace pyinv::ops {
namespace {
#define PYINV_VECTOR 4
#define PYINV_ROWS 6
#if defined(__aarch64__)
#define PYINV_MULTIPLY_ADD(factor, value, sum) vfmaq_n_f32(sum, value, factor)
#else
#define PYINV_MULTIPLY_ADD(factor, value, sum) ((factor) * (value) + (sum))
#endif
#include "kernels_loops.h"
}  // namespace

std::span<const Kernels> portable_kernels() {
  static const Kernels tables[] = {make_kernels<2>("portable")};
  return tables;
}

}  // namespace pyinv::ops
