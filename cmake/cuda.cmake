# The CUDA backend: cuda/*.cu where there is an nvcc, cuda/absent.cpp otherwise. The only place that knows about nvcc.

set(DANCE_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO (when nvcc works), ON or OFF")
set_property(CACHE DANCE_CUDA PROPERTY STRINGS AUTO ON OFF)
set(DANCE_CUDA_ARCHITECTURES "90-real;90-virtual" CACHE STRING
    "GPU architectures as in CMAKE_CUDA_ARCHITECTURES, by number; `all` is what a released wheel has")
if(NOT DANCE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "DANCE_CUDA=${DANCE_CUDA}: expected AUTO, ON or OFF")
endif()

# CUDA 13 starts at sm_75. The PTX of 90 and 120 serves parts newer than these.
if(DANCE_CUDA_ARCHITECTURES STREQUAL "all")
  set(dance_cuda_architectures 75-real 80-real 86-real 89-real 90-real 90-virtual 100-real 120-real 120-virtual)
else()
  set(dance_cuda_architectures ${DANCE_CUDA_ARCHITECTURES})
endif()
if(NOT dance_cuda_architectures MATCHES "^[0-9]+[a-f]?(-real|-virtual)?(;[0-9]+[a-f]?(-real|-virtual)?)*$")
  message(FATAL_ERROR "DANCE_CUDA_ARCHITECTURES=${DANCE_CUDA_ARCHITECTURES}: expected `all` or numbers such as 80-real;90")
endif()

set(dance_has_cuda OFF)
if(NOT DANCE_CUDA STREQUAL "OFF")
  # Before the language is enabled, or CMake would add an architecture of its own.
  set(CMAKE_CUDA_ARCHITECTURES ${dance_cuda_architectures})
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER AND DANCE_CUDA STREQUAL "AUTO")
    # An nvcc that is too old for sm_90 must not spoil a build that asked for nothing.
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE dance_nvcc_text)
    string(REGEX MATCH "release ([0-9]+)" dance_nvcc_match "${dance_nvcc_text}")
    if(CMAKE_MATCH_1 LESS 12)
      message(STATUS "dance: nvcc ${CMAKE_MATCH_1} is older than 12, so the CUDA backend is left out")
      set(CMAKE_CUDA_COMPILER NOTFOUND)
    endif()
  endif()
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(dance_has_cuda ON)
  elseif(DANCE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "DANCE_CUDA=ON: no working nvcc; install CUDA 12 or newer, set CUDACXX to its nvcc, or use DANCE_CUDA=OFF")
  endif()
endif()
message(STATUS "dance: CUDA backend ${dance_has_cuda}")

function(dance_add_cuda module)
  target_include_directories(${module} PRIVATE ${PROJECT_SOURCE_DIR}/cuda)
  if(NOT dance_has_cuda)
    target_sources(${module} PRIVATE ${PROJECT_SOURCE_DIR}/cuda/absent.cpp)
    return()
  endif()
  foreach(noun backend encode decode reduce mix sparse select scope gather indices scan)
    target_sources(${module} PRIVATE ${PROJECT_SOURCE_DIR}/cuda/${noun}.cu)
  endforeach()
  # The runtime is linked in: a wheel then imports where there is no CUDA at all. find_package(CUDAToolkit) would do the same
  # but fails with the nvcc of PyPI.
  set_target_properties(
    ${module}
    PROPERTIES CUDA_ARCHITECTURES "${dance_cuda_architectures}"
               CUDA_STANDARD 17
               CUDA_STANDARD_REQUIRED ON
               CUDA_EXTENSIONS OFF
               CUDA_RUNTIME_LIBRARY Static
               CUDA_SEPARABLE_COMPILATION OFF
               CUDA_VISIBILITY_PRESET hidden)
  # No contraction into fused multiply-add, for equal bits everywhere.
  target_compile_options(${module} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false -Xcompiler=-Wall,-Wextra>)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
    # Known to nvcc 13 (older ones were not tried); makes the fat binary of many architectures several times smaller.
    target_compile_options(${module} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--compress-mode=size>)
  endif()
endfunction()
