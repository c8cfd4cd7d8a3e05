# Turing, A100, Ampere cards, Orin, Ada, Hopper, Thor, Blackwell cards; as ARCHITECTURES of
# iwp_export/engine/kernel_library.py.
set(IWP_KNOWN_ARCHITECTURES 75 80 86 87 89 90 110 120)

# Those that an nvcc makes code for: 120 came with CUDA 12.8, 110 with 13.0. Hopper's also as PTX, from which drivers make
# code for what is not listed.
function(iwp_architectures nvcc result)
  execute_process(COMMAND ${nvcc} --list-gpu-code OUTPUT_VARIABLE told ERROR_QUIET)
  set(chosen "")
  foreach(architecture IN LISTS IWP_KNOWN_ARCHITECTURES)
    if(told MATCHES "sm_${architecture}([^0-9]|$)")
      if(architecture EQUAL 90)
        list(APPEND chosen 90)
      else()
        list(APPEND chosen ${architecture}-real)
      endif()
    endif()
  endforeach()
  if(NOT chosen)
    message(FATAL_ERROR
      "${nvcc} --list-gpu-code names none of ${IWP_KNOWN_ARCHITECTURES}: pass -DCMAKE_CUDA_ARCHITECTURES=87, for example.")
  endif()
  set(${result} "${chosen}" PARENT_SCOPE)
endfunction()
