// The floating-point mode of the kernels: subnormal numbers as they are, rounding to nearest.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace dance::cpu {

// Sets the mode of this thread while it lives: torch.set_flush_denormal and libraries linked with -ffast-math change it
// for the caller's thread, and packets would have other bits.
class FloatMode {
 public:
  FloatMode() : kept_(get()) {
    if ((kept_ & kControl) != kDefault) set(kDefault);
  }
  ~FloatMode() {
    if ((kept_ & kControl) != kDefault) set(kept_);
  }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
#if defined(__x86_64__)
  using Register = uint32_t;
  static constexpr Register kDefault = 0x1f80, kControl = 0xffc0;  // MXCSR without its sticky flags
  static Register get() { return _mm_getcsr(); }
  static void set(Register value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Register = uint64_t;
  static constexpr Register kDefault = 0, kControl = ~Register{0};  // FPCR
  static Register get() {
    Register value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void set(Register value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
#else
  using Register = uint32_t;
  static constexpr Register kDefault = 0, kControl = 0;
  static Register get() { return 0; }
  static void set(Register) {}
#endif
  Register kept_;
};

}  // namespace dance::cpu
