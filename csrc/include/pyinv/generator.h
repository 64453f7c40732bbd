// G: what turns latents into images.
#pragma once

#include <cstdint>

#include "pyinv/api.h"

namespace pyinv {

class PYINV_API Generator {
 public:
  virtual ~Generator() = default;

  virtual int64_t latent_size() const = 0;
  virtual int64_t image_size() const = 0;
  virtual int64_t condition_size() const = 0;  // 0: takes none

  // Writes image [count, image_size] from latent [count, latent_size] and condition [count,
  // condition_size], null if it takes none. All in host memory, on any device; `count` images are
  // made at once. May be called from several threads.
  virtual void generate(int64_t count, const float* latent, const float* condition,
                        float* image) const = 0;
};

}  // namespace pyinv
