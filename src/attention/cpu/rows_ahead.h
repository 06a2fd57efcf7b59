// What comes near while rows are read where they lie: cursors over runs of memory, which kernels move on as
// they work.
#pragma once

#include <cstdint>

namespace tessera::attention {

// Rows of a tile that one head reads before it is the next one's turn.
inline constexpr int kRowsTogether = 16;

// `rows` pieces of `bytes`, row_bytes apart.
struct RowsRun {
  const char* at;
  int64_t bytes, row_bytes;
  int64_t rows;
};

// The run behind the last one, in which a cursor may stay: the same lines over and over.
constexpr RowsRun no_run(const char* at) {
  return {at, 256, 0, INT64_MAX};
}

// Of the row that `end` ends, `at` comes next; `rows` are left of the run, this one included.
struct RowsCursor {
  const RowsRun* run = nullptr;
  const char *at = nullptr, *end = nullptr;
  int64_t rows = 0;
};

// Static and inline, as each ISA has its own, and as a call would cost the loops round it their registers.
static inline __attribute__((always_inline)) void begin_run(RowsCursor& cursor, const RowsRun* run) {
  cursor.run = run;
  cursor.at = run->at;
  cursor.end = run->at + run->bytes;
  cursor.rows = run->rows;
}

// Brings the next lines near.
template <int lines>
static inline __attribute__((always_inline)) void fetch(RowsCursor& cursor) {
#pragma GCC unroll 8
  for (int line = 0; line < lines; ++line) __builtin_prefetch(cursor.at + line * 64);
  cursor.at += lines * 64;
  if (__builtin_expect(cursor.at >= cursor.end, 0)) {
    if (--cursor.rows > 0) {
      cursor.end += cursor.run->row_bytes;
      cursor.at = cursor.end - cursor.run->bytes;
    } else {
      begin_run(cursor, cursor.run + 1);
    }
  }
}

}  // namespace tessera::attention
