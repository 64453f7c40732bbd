// Runs over targets that arrive one by one, for pyinv.Inverter.stream.
#pragma once

#include <pybind11/pybind11.h>

namespace pyinv {

void bind_stream(pybind11::module_& module);

}  // namespace pyinv
