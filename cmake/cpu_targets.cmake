# The CPU targets: csrc/cpu/*kernels.cpp compiled once for each. The only place with -m flags.

# No contraction into fused multiply-add, for equal bits everywhere; -fno-trapping-math changes no value and lets gcc
# vectorise selects.
set(DANCE_MATH_FLAGS -ffp-contract=off -fno-trapping-math -fno-math-errno)

function(dance_add_cpu_targets module)
  set(targets baseline)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND targets avx2 avx512)
    set(flags_avx2 -mavx2 -mf16c)
    set(flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mf16c -mprefer-vector-width=512)
    target_compile_definitions(${module} PRIVATE DANCE_HAS_AVX2 DANCE_HAS_AVX512)
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
    list(APPEND targets neon)
    target_compile_definitions(${module} PRIVATE DANCE_HAS_NEON)
  endif()
  foreach(target IN LISTS targets)
    add_library(dance_cpu_${target} OBJECT ${PROJECT_SOURCE_DIR}/csrc/cpu/kernels.cpp
                                          ${PROJECT_SOURCE_DIR}/csrc/cpu/select_kernels.cpp)
    target_include_directories(dance_cpu_${target} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
    target_compile_definitions(dance_cpu_${target} PRIVATE DANCE_TARGET=${target})
    # -O3 is what vectorises; no exceptions, so that no shared library code is pulled in per target.
    target_compile_options(dance_cpu_${target} PRIVATE -O3 ${DANCE_MATH_FLAGS} -fno-exceptions -fno-rtti ${flags_${target}})
    set_target_properties(dance_cpu_${target} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden
                                                         VISIBILITY_INLINES_HIDDEN ON)
    target_sources(${module} PRIVATE $<TARGET_OBJECTS:dance_cpu_${target}>)
  endforeach()
endfunction()
