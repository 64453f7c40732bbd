// A TorchScript file's source, read before torch compiles it: to compile a method torch runs the
// expressions of its default arguments, and to load an object its __setstate__.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "pyinv/api.h"

namespace pyinv::torchscript {

// Why a file is not loaded, such as "it has objects of torch.classes".
class PYINV_API Refused : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The operators that the source may call although allows() does not list them, each once. Every
// name outside of strings counts, so of these only the ones that torch knows are operators.
// Throws Refused for what no generator needs (__setstate__, classes written in C++) and
// for source that torch's compiler would not take or could not take without exhausting its stack.
PYINV_API std::vector<std::string> unlisted_operators(std::string_view source);

}  // namespace pyinv::torchscript
