# Adds the CUDA sources to the library, or their replacement.
set(PYINV_CUDA AUTO CACHE STRING "Build for GPUs: AUTO (where there is a CUDA compiler), ON or OFF")
set_property(CACHE PYINV_CUDA PROPERTY STRINGS AUTO ON OFF)
include(${CMAKE_CURRENT_LIST_DIR}/nvcc.cmake)

set(_pyinv_cuda OFF)
if(PYINV_CUDA STREQUAL "AUTO" OR PYINV_CUDA)
  pyinv_find_nvcc(_pyinv_cuda)
  if(NOT _pyinv_cuda AND NOT PYINV_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "PYINV_CUDA=${PYINV_CUDA}, but no nvcc of CUDA 12 or newer works here; "
      "put it on PATH, set CUDACXX, or build with PYINV_CUDA=OFF")
  endif()
endif()

if(_pyinv_cuda)
  pyinv_enable_cuda()
  message(STATUS "pyinv: CUDA for ${CMAKE_CUDA_ARCHITECTURES}")
  target_sources(pyinv PRIVATE
    csrc/backend_cuda.cpp
    csrc/kernels/swap_lanes_cuda.cu
    csrc/kernels/moments_cuda.cu
    csrc/kernels/update_status_cuda.cu
    csrc/kernels/propose_cuda.cu
    csrc/kernels/refill_cuda.cu
    csrc/kernels/step_cuda.cu)
  pyinv_use_cuda(pyinv)
else()
  message(STATUS "pyinv: no CUDA")
  target_sources(pyinv PRIVATE csrc/no_cuda.cpp)
endif()
