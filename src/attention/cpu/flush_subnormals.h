// Flush-to-zero and denormals-are-zero while it lives: tiny probabilities would halve the speed. Part of the
// arithmetic, so every path of a product runs under it.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tessera::attention {

class FlushSubnormals {
 public:
#if defined(__x86_64__)
  FlushSubnormals() : saved_(_mm_getcsr()) {
    _mm_setcsr(saved_ | 0x8040u);
  }
  ~FlushSubnormals() {
    _mm_setcsr(saved_);
  }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  unsigned saved_;
#endif
};

}  // namespace tessera::attention
