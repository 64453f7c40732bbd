// Measures the machine's peak in billions of float32 operations per second: threads that only do
// independent fused multiply-adds in registers, each of which counts as two operations. Benchmarks
// report a fraction of this peak. loop.py builds and runs it:
//   c++ -std=c++20 -O3 -ffp-contract=fast -pthread benchmarks/fma_peak.cpp -o build/fma_peak
//   build/fma_peak [threads] [seconds]
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

// Enough independent sums to hide the latency of two multiply-add pipes, few enough for 16
// registers.
constexpr int kSums = 10;
constexpr int64_t kRounds = 1 << 18;

// A macro instead of a template, because all code of a function must be compiled for its
// instruction set. This file is compiled with contraction on, which turns the line into a
// multiply-add.
#define PYINV_DEFINE_ROUNDS(name, bytes, attribute)                           \
  attribute float name(float seed) {                                          \
    using Vector = float __attribute__((vector_size(bytes)));                 \
    Vector sums[kSums], factor = Vector{} + 0.999f, term = Vector{} + 0.001f; \
    for (int i = 0; i < kSums; ++i) sums[i] = Vector{} + (seed + i);          \
    for (int64_t round = 0; round < kRounds; ++round) {                       \
      _Pragma("GCC unroll 10") for (int i = 0; i < kSums; ++i) {              \
        sums[i] = sums[i] * factor + term;                                    \
      }                                                                       \
    }                                                                         \
    for (int i = 1; i < kSums; ++i) sums[0] += sums[i];                       \
    return sums[0][0];                                                        \
  }

struct Kernel {
  float (*rounds)(float seed);
  int lanes;
};

#if defined(__x86_64__) && defined(__GNUC__)
PYINV_DEFINE_ROUNDS(rounds_avx512, 64, __attribute__((target("avx512f"))))
PYINV_DEFINE_ROUNDS(rounds_avx2, 32, __attribute__((target("avx2,fma"))))
PYINV_DEFINE_ROUNDS(rounds_sse2, 16, )

Kernel widest_kernel() {
  if (__builtin_cpu_supports("avx512f")) return {rounds_avx512, 16};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {rounds_avx2, 8};
  return {rounds_sse2, 4};
}
#elif defined(__GNUC__)
PYINV_DEFINE_ROUNDS(rounds_128, 16, )

Kernel widest_kernel() { return {rounds_128, 4}; }
#else
float rounds_scalar(float seed) {
  float sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = seed + i;
  for (int64_t round = 0; round < kRounds; ++round) {
    for (float& sum : sums) sum = sum * 0.999f + 0.001f;
  }
  return sums[0];
}

Kernel widest_kernel() { return {rounds_scalar, 1}; }
#endif

double measure(int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  const Kernel kernel = widest_kernel();
  std::vector<double> rates(static_cast<size_t>(threads));
  std::vector<std::thread> workers;
  workers.reserve(rates.size());
  for (double& rate : rates) {
    workers.emplace_back([&rate, &kernel, seconds] {
      volatile float sink = kernel.rounds(1.0f);
      const auto start = Clock::now();
      double elapsed = 0.0;
      int64_t calls = 0;
      while (elapsed < seconds) {
        sink = kernel.rounds(sink);
        ++calls;
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
      }
      rate = 2e-9 * kSums * kernel.lanes * static_cast<double>(kRounds) *
             static_cast<double>(calls) / elapsed;
    });
  }
  for (std::thread& worker : workers) worker.join();
  double sum = 0.0;
  for (const double rate : rates) sum += rate;
  return sum;
}

}  // namespace

int main(int count, char** values) {
  const int threads = count > 1 ? std::atoi(values[1]) : 1;
  const double seconds = count > 2 ? std::atof(values[2]) : 0.5;
  std::printf("%.3f\n", measure(threads, seconds));
}
