# Adds the CUDA sources to the library, or what stands in for them.
target_sources(pyinv PRIVATE csrc/no_cuda.cpp)
