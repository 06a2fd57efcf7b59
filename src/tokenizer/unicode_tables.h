// The data behind unicode.h, made by tools/make_unicode_tables.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::tokenizer::tables {

// Ascending `first code point << 3 | CharClass`; a run ends where the next begins.
extern const uint32_t kClassRuns[];
extern const size_t kClassRunCount;

// Every `stride`-th code point of [first, last] maps to itself + delta. Ascending by first.
struct CaseRange {
  uint32_t first, last;
  int32_t stride, delta;
};
extern const CaseRange kUpperRanges[], kLowerRanges[];
extern const size_t kUpperRangeCount, kLowerRangeCount;

// Mappings to several code points, in UTF-8. Ascending by code.
struct CaseSpecial {
  uint32_t code;
  const char* text;
};
extern const CaseSpecial kUpperSpecials[], kLowerSpecials[], kTitleSpecials[];
extern const size_t kUpperSpecialCount, kLowerSpecialCount, kTitleSpecialCount;

}  // namespace tessera::tokenizer::tables
