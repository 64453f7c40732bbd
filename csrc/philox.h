// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3" (SC 2011), and the definition of its counter in pyinv.
//
// A draw is a pure function of (seed, target, restart, step, component, purpose). It does not
// depend on lane, batch size, thread or device, so a target gets the same draws however a call is
// split. Rounding: integers and uniforms are exact on every device; every product-and-sum that
// must round once is written as fmaf.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define PYINV_HOST_DEVICE __host__ __device__
#else
#define PYINV_HOST_DEVICE
#endif
// For loops over an array that a GPU must keep in registers.
#ifdef __CUDA_ARCH__
#define PYINV_UNROLL _Pragma("unroll")
#else
#define PYINV_UNROLL
#endif

namespace pyinv {

struct PhiloxWords {
  uint32_t word[4];
};

PYINV_HOST_DEVICE inline PhiloxWords philox4x32_10(PhiloxWords counter, uint32_t key0,
                                                   uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<uint32_t>(p1 >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(p1),
                static_cast<uint32_t>(p0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<uint32_t>(p0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

enum class DrawPurpose : uint32_t { initial = 0, resample = 1 };

// The key of a draw; together with the step and the component it identifies the draw.
struct DrawKey {
  uint64_t seed;
  uint64_t target;   // below 2^48
  uint32_t restart;  // below 2^12
};

PYINV_HOST_DEVICE inline PhiloxWords draw_words(const DrawKey& key, DrawPurpose purpose,
                                                uint32_t step, uint32_t component) {
  const uint32_t last = static_cast<uint32_t>(purpose) | (key.restart << 4) |
                        (static_cast<uint32_t>(key.target >> 32) << 16);
  return philox4x32_10({{component, step, static_cast<uint32_t>(key.target), last}},
                       static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32));
}

// In [0, 1], with relative rather than absolute precision, so that values below 1e-9 occur.
PYINV_HOST_DEVICE inline float decision_uniform(const PhiloxWords& words) {
  return static_cast<float>(words.word[0]) * 0x1p-32f;
}

PYINV_HOST_DEVICE inline float uniform_draw(const PhiloxWords& words, float low, float high) {
  return fmaf(high - low, static_cast<float>(words.word[1] >> 8) * 0x1p-24f, low);
}

// The cosine half of the Box-Muller transform; |draw - mean| stays below 6.7 std.
PYINV_HOST_DEVICE inline float normal_draw(const PhiloxWords& words, float mean, float std) {
  const float u1 = fmaf(static_cast<float>(words.word[1]), 0x1p-32f, 0x1p-33f);
  const float u2 = static_cast<float>(words.word[2]) * 0x1p-32f;
  return fmaf(std, sqrtf(-2.0f * logf(u1)) * cosf(6.283185307179586f * u2), mean);
}

}  // namespace pyinv
