#include "kernels.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "pyinv/device.h"
#include "scratch.h"

namespace pyinv::ops {
namespace {

// A set of kernels, perhaps with another set's product.
struct Candidate {
  Kernels kernels;
  double seconds;  // of the product of one column, by which candidates compare
};

// The time of a product that stays in the cache, per column. The shortest of several, because other
// programs may run.
double seconds_per_column(const Kernels& kernels) {
  constexpr std::size_t rows = 48, depth = 128, tries = 20;
  Buffer buffer;
  float* weights = buffer.at_least((depth + rows) * kernels.panel + rows * depth);
  float* left = weights + depth * kernels.panel;
  float* out = left + rows * depth;
  std::fill(weights, out, 1.0f);
  const float* lines[rows];
  for (std::size_t row = 0; row < rows; ++row) lines[row] = left + row * depth;
  double shortest = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < tries; ++i) {
    const auto start = std::chrono::steady_clock::now();
    kernels.multiply(lines, rows, depth, weights, 1, 0, out, kernels.panel, false);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    shortest = std::min(shortest, taken.count());
  }
  return shortest / static_cast<double>(kernels.panel);
}

// What this processor can run and the environment allows, the widest registers first.
//
// Wide registers are the best for everything but the product. There some processors split them in
// two, and others slow down, so the products are timed. All give the same bits: each output is a
// sum in the order of the depth, of fused multiply-adds.
std::vector<Candidate> make_candidates() {
  const char* value = std::getenv("PYINV_MAX_CPU_ISA");
  const std::string_view most = value && *value ? value : "avx512";
  if (most != "avx512" && most != "avx2" && most != "portable") {
    throw std::invalid_argument("PYINV_MAX_CPU_ISA should be avx512, avx2 or portable, got " +
                                std::string(most));
  }
  std::vector<std::span<const Kernels>> sets;
  if (most == "avx512") sets.push_back(avx512_kernels());
  if (most != "portable") sets.push_back(avx2_kernels());
  std::erase_if(sets, [](const auto& set) { return set.empty(); });
  if (sets.empty()) sets.push_back(portable_kernels());
  std::vector<Candidate> products;
  for (const auto& set : sets) {
    for (const Kernels& one : set) products.push_back({one, seconds_per_column(one)});
  }
  std::vector<Candidate> candidates;
  for (const auto& set : sets) {
    for (const Candidate& product : products) {
      candidates.push_back({set.front(), product.seconds});
      candidates.back().kernels.panel = product.kernels.panel;
      candidates.back().kernels.multiply = product.kernels.multiply;
    }
  }
  return candidates;
}

// Of the widest registers that are allowed, those with the fastest product.
template <class Allowed>
const Kernels* best_kernels(std::size_t columns, const Allowed& allowed) {
  static const std::vector<Candidate> candidates = make_candidates();
  const auto seconds = [columns](const Candidate& one) {
    const std::size_t panel = one.kernels.panel;
    return one.seconds * static_cast<double>((columns + panel - 1) / panel * panel);
  };
  const Candidate* best = nullptr;
  for (const Candidate& one : candidates) {
    if (!allowed(one.kernels)) continue;
    const bool as_wide = best && one.kernels.vector == best->kernels.vector;
    if (!best || (as_wide && seconds(one) < seconds(*best))) best = &one;
  }
  return best ? &best->kernels : nullptr;
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
