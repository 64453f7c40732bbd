// SHA-256 (FIPS 180-4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "pyinv/api.h"

namespace pyinv {

class PYINV_API Sha256 {
 public:
  explicit Sha256(bool portable = false);  // portable: without the CPU's instructions for it
  void add(std::string_view bytes);
  std::string hexadecimal();  // ends the message; call it once

 private:
  using Compress = void (*)(uint32_t* state, const uint8_t* blocks, size_t count);

  Compress compress_;
  uint32_t state_[8];
  uint64_t length_ = 0;  // bytes
  uint8_t pending_[64];  // the last length_ % 64 bytes
};

// The digest of a file's content, hexadecimal; empty if it cannot be read.
std::string sha256_of(const std::filesystem::path& file);

}  // namespace pyinv
