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
#if defined(__aarch64__)
#define PYINV_MULTIPLY_ADD(factor, value, sum) vfmaq_n_f32(sum, value, factor)
#else
#define PYINV_MULTIPLY_ADD(factor, value, sum) ((factor) * (value) + (sum))
#endif
#include "kernels_loops.h"
}  // namespace

const Kernels& portable_kernels() {
  static const Kernels table = make_kernels("portable");
  return table;
}

const Kernels& kernels() {
  static const Kernels& best = avx2_kernels() ? *avx2_kernels() : portable_kernels();
  return best;
}

}  // namespace pyinv::ops
