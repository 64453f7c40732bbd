// The operators that a TorchScript file may use.
#pragma once

#include <string_view>

#include "pyinv/api.h"

namespace pyinv::torchscript {

// Whether a file may use an operator, such as "aten::add". All overloads of a name count as one,
// and add_ counts as add.
PYINV_API bool allows(std::string_view name);

}  // namespace pyinv::torchscript
