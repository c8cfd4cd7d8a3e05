# Enables CUDA with the compiler that is here, for the GPUs that this compiler makes code for, unless the user says which.

# JetPack does not put nvcc on the path.
if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(IWP_NVCC nvcc HINTS /usr/local/cuda/bin)
  if(NOT IWP_NVCC)
    message(FATAL_ERROR "nvcc is not found: install the CUDA toolkit, or pass -DCMAKE_CUDA_COMPILER=/path/to/nvcc.")
  endif()
  set(CMAKE_CUDA_COMPILER "${IWP_NVCC}")
endif()

# Enabling CUDA puts the compiler's one default architecture into the cache, so a user's choice is looked for before.
set(IWP_CHOOSE_ARCHITECTURES TRUE)
if(DEFINED CMAKE_CUDA_ARCHITECTURES OR DEFINED ENV{CUDAARCHS})
  set(IWP_CHOOSE_ARCHITECTURES FALSE)
endif()
enable_language(CUDA)
if(IWP_CHOOSE_ARCHITECTURES)
  include(${CMAKE_CURRENT_LIST_DIR}/architectures.cmake)
  iwp_architectures("${CMAKE_CUDA_COMPILER}" IWP_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "${IWP_ARCHITECTURES}" CACHE STRING "GPU architectures" FORCE)
endif()
message(STATUS "GPU architectures: ${CMAKE_CUDA_ARCHITECTURES}")
