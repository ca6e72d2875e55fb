// What an object that is compiled once for each CPU target calls itself: cmake/cpu_targets.cmake sets DANCE_TARGET.
#pragma once

#define DANCE_JOIN_(a, b) a##b
#define DANCE_JOIN(a, b) DANCE_JOIN_(a, b)
#define DANCE_STRING_(a) #a
#define DANCE_STRING(a) DANCE_STRING_(a)

// The function `prefix` of this target, say kernels_avx2, and the target's name as text.
#define DANCE_TARGET_FUNCTION(prefix) DANCE_JOIN(prefix, DANCE_TARGET)
#define DANCE_TARGET_NAME DANCE_STRING(DANCE_TARGET)
