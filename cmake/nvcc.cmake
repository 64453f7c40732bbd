# How CUDA sources are compiled: for which GPUs, and with which rounding.

# Turing to Blackwell; the driver compiles the last entry's PTX for newer GPUs.
set(_pyinv_architectures 75 80 86 89 90 100 120)

# Sets `result` to whether there is a working CUDA compiler that is new enough.
macro(pyinv_find_nvcc result)
  include(CheckLanguage)
  check_language(CUDA)
  set(${result} OFF)
  if(CMAKE_CUDA_COMPILER)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch
      OUTPUT_VARIABLE _pyinv_known ERROR_QUIET)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version
      OUTPUT_VARIABLE _pyinv_version ERROR_QUIET)
    # Kernels are C++20, which nvcc supports from CUDA 12.
    if(_pyinv_version MATCHES "release ([0-9]+)" AND CMAKE_MATCH_1 GREATER_EQUAL 12)
      set(${result} ON)
    else()
      message(STATUS "pyinv: ${CMAKE_CUDA_COMPILER} is older than CUDA 12 and not used")
    endif()
  endif()
endmacro()

# Enables CUDA for the architectures in CMAKE_CUDA_ARCHITECTURES, or else for all of the list above
# that the compiler supports.
macro(pyinv_enable_cuda)
  if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    set(CMAKE_CUDA_ARCHITECTURES)
    foreach(_pyinv_architecture IN LISTS _pyinv_architectures)
      if(_pyinv_known MATCHES "compute_${_pyinv_architecture}[^0-9]")
        list(APPEND CMAKE_CUDA_ARCHITECTURES ${_pyinv_architecture}-real)
        set(_pyinv_newest ${_pyinv_architecture})
      endif()
    endforeach()
    list(APPEND CMAKE_CUDA_ARCHITECTURES ${_pyinv_newest}-virtual)
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  # Some releases of CMake do not know that nvcc supports C++20.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  endif()
endmacro()

# Compiles and links the CUDA sources of `target`.
function(pyinv_use_cuda target)
  # As compute capabilities in messages: 8.0, 9.0.
  set(capabilities ${CMAKE_CUDA_ARCHITECTURES})
  list(TRANSFORM capabilities REPLACE "-(real|virtual)$" "")
  list(TRANSFORM capabilities REPLACE "([0-9])([af]?)$" ".\\1\\2")
  list(REMOVE_DUPLICATES capabilities)
  list(JOIN capabilities ", " capabilities)
  target_compile_definitions(${target} PRIVATE PYINV_CUDA_ARCHITECTURES="${capabilities}")

  # A static runtime, so that the library loads without CUDA and beside any other CUDA version.
  set_target_properties(${target} PROPERTIES
    CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}"
    CUDA_RUNTIME_LIBRARY Static
    CUDA_STANDARD 20
    CUDA_STANDARD_REQUIRED ON
    CUDA_EXTENSIONS OFF
    CUDA_VISIBILITY_PRESET hidden
    CUDA_SEPARABLE_COMPILATION OFF)
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
  if(UNIX AND NOT APPLE)
    # Its symbols must not be confused with those of another runtime in the process.
    target_link_options(${target} PRIVATE LINKER:--exclude-libs,libcudart_static.a)
  endif()

  # No contraction and no fast math, so that each operation rounds alike on a CPU and a GPU. Where
  # one rounding is meant for two operations, the code uses fmaf.
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>)
  if(NOT MSVC)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-ffp-contract=off>)
  endif()
endfunction()
