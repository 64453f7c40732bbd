# Builds the TorchScript runtime if the target Python has torch: the library pyinv_torch and the
# Python module _torch. Nothing else links to torch.
set(PYINV_TORCH AUTO CACHE STRING "The TorchScript runtime: AUTO (where torch is found), ON or OFF")
set_property(CACHE PYINV_TORCH PROPERTY STRINGS AUTO ON OFF)
if(NOT PYINV_TORCH)
  return()
endif()

# Find torch without importing it, which is fast and needs no device.
execute_process(
  COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/find_torch.py
  OUTPUT_VARIABLE PYINV_TORCH_FOUND OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE PYINV_TORCH_MISSING ERROR_VARIABLE PYINV_TORCH_REASON ERROR_STRIP_TRAILING_WHITESPACE)
if(PYINV_TORCH_MISSING)
  if(PYINV_TORCH STREQUAL "AUTO")
    message(STATUS "TorchScript runtime: not built, ${PYINV_TORCH_REASON}")
    return()
  endif()
  message(FATAL_ERROR "PYINV_TORCH is ${PYINV_TORCH}, but ${PYINV_TORCH_REASON}")
endif()
list(GET PYINV_TORCH_FOUND 0 PYINV_TORCH_VERSION)
list(GET PYINV_TORCH_FOUND 1 PYINV_TORCH_ROOT)
list(GET PYINV_TORCH_FOUND 2 PYINV_TORCH_CXX11_ABI)
message(STATUS "TorchScript runtime: with torch ${PYINV_TORCH_VERSION} in ${PYINV_TORCH_ROOT}")

# Not find_package(Torch): with CUDA it requires the CUDA compiler and toolkit, which these sources
# do not need, and adds its flags to everything that links to it.
add_library(pyinv_torch SHARED
  csrc/torch/archive.cpp
  csrc/torch/function.cpp
  csrc/torch/network.cpp
  csrc/torch/method.cpp
  csrc/torch/objective.cpp
  csrc/torch/scope.cpp)
target_include_directories(pyinv_torch SYSTEM PRIVATE
  ${PYINV_TORCH_ROOT}/include ${PYINV_TORCH_ROOT}/include/torch/csrc/api/include)
target_compile_definitions(pyinv_torch PRIVATE
  _GLIBCXX_USE_CXX11_ABI=${PYINV_TORCH_CXX11_ABI} PYINV_BUILDING)
# torch's checks contain their file name; keep paths of the build machine out of the library.
target_compile_options(pyinv_torch PRIVATE -Wall -Wextra
  -fmacro-prefix-map=${PYINV_TORCH_ROOT}/= -fmacro-prefix-map=${CMAKE_CURRENT_SOURCE_DIR}/=)
# libtorch.so contains only dependencies. With CUDA these include the library of the GPU operators,
# which register themselves when it is loaded.
target_link_libraries(pyinv_torch PUBLIC pyinv PRIVATE
  -Wl,--no-as-needed ${PYINV_TORCH_ROOT}/lib/libtorch.so -Wl,--as-needed
  ${PYINV_TORCH_ROOT}/lib/libtorch_cpu.so ${PYINV_TORCH_ROOT}/lib/libc10.so)
# In Python, torch is loaded first. A C++ program finds the torch that pip installed beside pyinv.
set_target_properties(pyinv_torch PROPERTIES INSTALL_RPATH "${PYINV_ORIGIN};${PYINV_ORIGIN}/../../torch/lib")

pybind11_add_module(_torch csrc/bindings/torch_module.cpp)
target_link_libraries(_torch PRIVATE pyinv_torch)
set_target_properties(_torch PROPERTIES INSTALL_RPATH ${PYINV_ORIGIN}/lib)
install(TARGETS _torch DESTINATION pyinv)

# Read before the module is loaded, because loading it with another torch may end the process.
file(CONFIGURE OUTPUT _torch_build.py CONTENT
"\"\"\"Written by the build: the torch that the TorchScript runtime was built with.\"\"\"

VERSION = \"@PYINV_TORCH_VERSION@\"
" @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/_torch_build.py DESTINATION pyinv)
