// Rows of K and V -> the order of bytes inside a tile (kv_storage.h), per ISA: nothing but moved words.
#pragma once

#include <cstdint>

namespace tessera::attention {

// What will be packed later, to be fetched meanwhile, in order: `rows` rows of `lines` cache lines.
struct PackAhead {
  const char* at;
  int64_t row_bytes;
  int rows, lines;
};

struct PackKernels {
  // in: `keys` rows, row_bytes apart, of `words` 32-bit words (a multiple of 4) -> out [words][64] keys;
  // what lies behind `keys` stays. `ahead` may be null.
  void (*transpose)(const char* in, int64_t row_bytes, int words, int keys, const PackAhead* ahead,
                    char* out);
  // The same of rows of f16, two to a word -> out [2 words][64] f32.
  void (*transpose_f16)(const char* in, int64_t row_bytes, int words, int keys, const PackAhead* ahead,
                        char* out);
  // Rows of `columns` 16-bit elements (a multiple of 8), two by two -> out [keys / 2][out_bytes], elements of
  // the two rows alternating. Of an odd last row the other half is that row again.
  void (*interleave)(const char* in, int64_t row_bytes, int columns, int keys, const PackAhead* ahead,
                     char* out, int64_t out_bytes);
  // Rows of `columns` elements (a multiple of 8), f16 or f32 -> out [keys][out_bytes] of f32.
  void (*widen)(bool f16, const char* in, int64_t row_bytes, int columns, int keys, const PackAhead* ahead,
                char* out, int64_t out_bytes);
};

extern const PackKernels kPackKernels_scalar, kPackKernels_avx2, kPackKernels_avx512;

// Of the ISA that TESSERA_ISA asks for, or this machine's best.
const PackKernels& pack_kernels();

}  // namespace tessera::attention
