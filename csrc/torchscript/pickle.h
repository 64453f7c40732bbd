// A TorchScript file's pickles, read before torch makes their objects. torch believes what a pickle
// says of the size of a tensor's memory, and then reads beyond the record that has it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pyinv/api.h"

namespace pyinv::torchscript {

// The memory of a tensor, as a pickle describes it.
struct Storage {
  std::string record;  // its name within the pickle's folder
  uint64_t bytes = 0;
};

// The storages that a pickle refers to. Throws Refused for a pickle that torch does not write, and
// for objects of classes that are written in C++, whose code takes any state.
PYINV_API std::vector<Storage> storages(std::string_view pickle);

}  // namespace pyinv::torchscript
