#include "kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "pyinv/device.h"

namespace pyinv::ops {
namespace {

// The sets that this processor can run and the environment allows, the fastest first.
std::vector<const Kernels*> usable_kernels() {
  const char* value = std::getenv("PYINV_MAX_CPU_ISA");
  const std::string_view most = value && *value ? value : "avx512";
  if (most != "avx512" && most != "avx2" && most != "portable") {
    throw std::invalid_argument("PYINV_MAX_CPU_ISA should be avx512, avx2 or portable, got " +
                                std::string(most));
  }
  std::vector<const Kernels*> usable;
  const auto add = [&](std::span<const Kernels> tables) {
    for (const Kernels& table : tables) usable.push_back(&table);
  };
  if (most == "avx512") add(avx512_kernels());
  if (most != "portable") add(avx2_kernels());
  add(portable_kernels());
  return usable;
}

// Of the widest registers that are allowed, the panel with the fewest columns of padding.
template <class Allowed>
const Kernels* best_kernels(std::size_t columns, const Allowed& allowed) {
  static const std::vector<const Kernels*> usable = usable_kernels();
  const auto padded = [columns](const Kernels& kernels) {
    return (columns + kernels.panel - 1) / kernels.panel * kernels.panel;
  };
  const Kernels* best = nullptr;
  for (const Kernels* one : usable) {
    if (!allowed(*one)) continue;
    if (!best || (one->vector == best->vector && padded(*one) < padded(*best))) best = one;
  }
  return best;
}

}  // namespace

const Kernels& kernels(std::size_t columns) {
  return *best_kernels(columns, [](const Kernels&) { return true; });
}

const Kernels* kernels_for_channels(std::size_t in, std::size_t out) {
  return best_kernels(
      out, [&](const Kernels& one) { return in % one.vector == 0 && out % one.vector == 0; });
}

}  // namespace pyinv::ops

const char* pyinv::cpu_isa() { return ops::kernels(1).name; }
