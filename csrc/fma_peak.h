// What this machine's cores can do at most, for benchmarks that report a fraction of it.
#pragma once

#include "pyinv/api.h"

namespace pyinv {

// Billions of float32 operations a second (a fused multiply-add counts as two) of `threads` threads
// that do nothing but independent fused multiply-adds in registers for about `seconds`.
PYINV_API double measure_fma_peak(int threads, double seconds);

}  // namespace pyinv
