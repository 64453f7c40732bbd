// E: what turns images into latents in one pass, to begin an inversion from.
#pragma once

#include <cstdint>

#include "pyinv/api.h"

namespace pyinv {

class PYINV_API Encoder {
 public:
  virtual ~Encoder() = default;

  virtual int64_t latent_size() const = 0;
  virtual int64_t image_size() const = 0;
  virtual int64_t condition_size() const = 0;  // 0: takes none

  // Writes latent [count, latent_size] from image [count, image_size] and condition [count,
  // condition_size], null if it takes none. All in host memory, on any device; `count` images are
  // encoded at once. May be called from several threads.
  virtual void encode(int64_t count, const float* image, const float* condition,
                      float* latent) const = 0;
};

}  // namespace pyinv
