#include "sha256.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <fstream>
#include <vector>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>
#include <immintrin.h>
#define PYINV_SHA_INSTRUCTIONS 1
#endif

namespace pyinv {
namespace {

constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

void compress_portable(uint32_t* state, const uint8_t* block, size_t count) {
  for (; count > 0; --count, block += 64) {
    uint32_t w[64];
    for (size_t t = 0; t < 16; ++t) {
      w[t] = uint32_t{block[4 * t]} << 24 | uint32_t{block[4 * t + 1]} << 16 |
             uint32_t{block[4 * t + 2]} << 8 | block[4 * t + 3];
    }
    for (int t = 16; t < 64; ++t) {
      const uint32_t a = w[t - 15], b = w[t - 2];
      w[t] = w[t - 16] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ a >> 3) + w[t - 7] +
             (std::rotr(b, 17) ^ std::rotr(b, 19) ^ b >> 10);
    }
    uint32_t v[8];
    std::copy_n(state, 8, v);
    auto& [a, b, c, d, e, f, g, h] = v;
    for (int t = 0; t < 64; ++t) {
      const uint32_t first = h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                             ((e & f) ^ (~e & g)) + kRound[t] + w[t];
      const uint32_t second =
          (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    for (int i = 0; i < 8; ++i) state[i] += v[i];
  }
}

#ifdef PYINV_SHA_INSTRUCTIONS
// sha256rnds2 does two rounds on the state's words, which it takes as ABEF and CDGH.
__attribute__((target("sha,sse4.1"))) void compress_sha(uint32_t* state, const uint8_t* block,
                                                        size_t count) {
  const __m128i swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
  __m128i abef = _mm_set_epi32(int(state[0]), int(state[1]), int(state[4]), int(state[5]));
  __m128i cdgh = _mm_set_epi32(int(state[2]), int(state[3]), int(state[6]), int(state[7]));
  for (; count > 0; --count, block += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i words[4];  // the last 16 of the schedule
    for (size_t group = 0; group < 16; ++group) {
      __m128i& now = words[group % 4];
      if (group < 4) {
        now = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 16 * group));
        now = _mm_shuffle_epi8(now, swap);
      } else {
        const __m128i last = words[(group + 3) % 4], before = words[(group + 2) % 4];
        now = _mm_sha256msg1_epu32(now, words[(group + 1) % 4]);
        now = _mm_add_epi32(now, _mm_alignr_epi8(last, before, 4));
        now = _mm_sha256msg2_epu32(now, last);
      }
      __m128i sum = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kRound + 4 * group));
      sum = _mm_add_epi32(sum, now);
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  uint32_t high[4], low[4];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), abef);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), cdgh);
  const uint32_t words[8] = {high[3], high[2], low[3], low[2], high[1], high[0], low[1], low[0]};
  std::copy_n(words, 8, state);
}

bool has_sha_instructions() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 29) != 0 &&
         __builtin_cpu_supports("sse4.1");
}
#endif

}  // namespace

Sha256::Sha256([[maybe_unused]] bool portable)
    : compress_(compress_portable), state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                           0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {
#ifdef PYINV_SHA_INSTRUCTIONS
  if (!portable && has_sha_instructions()) compress_ = compress_sha;
#endif
}

void Sha256::add(std::string_view bytes) {
  const size_t held = length_ % 64;
  length_ += bytes.size();
  if (held > 0) {
    const size_t taken = std::min(bytes.size(), 64 - held);
    std::copy_n(bytes.begin(), taken, pending_ + held);
    bytes.remove_prefix(taken);
    if (held + taken < 64) return;
    compress_(state_, pending_, 1);
  }
  compress_(state_, reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size() / 64);
  bytes.remove_prefix(bytes.size() / 64 * 64);
  std::copy(bytes.begin(), bytes.end(), pending_);
}

std::string Sha256::hexadecimal() {
  const uint64_t bits = length_ * 8;
  std::string end(1 + (119 - length_ % 64) % 64, '\0');
  end[0] = '\x80';
  for (int shift = 56; shift >= 0; shift -= 8) end += static_cast<char>(bits >> shift);
  add(end);
  std::string text;
  for (uint32_t word : state_) {
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
  }
  return text;
}

std::string sha256_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> block(1 << 20);
  Sha256 digest;
  while (file) {
    file.read(block.data(), static_cast<std::streamsize>(block.size()));
    digest.add({block.data(), static_cast<size_t>(file.gcount())});
  }
  return file.eof() ? digest.hexadecimal() : "";
}

}  // namespace pyinv
