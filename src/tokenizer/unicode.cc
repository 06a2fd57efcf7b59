#include "tokenizer/unicode.h"

#include <algorithm>

#include "tokenizer/unicode_tables.h"

namespace tessera::tokenizer {
namespace {

uint32_t map_simple(uint32_t code, const tables::CaseRange* ranges, size_t count) {
  const auto* end = ranges + count;
  const auto* range =
      std::upper_bound(ranges, end, code, [](uint32_t c, const tables::CaseRange& r) { return c < r.first; });
  // Ranges of stride 2 may interleave with a neighbour, so the range before is asked too.
  for (int back = 0; back < 2 && range != ranges; ++back) {
    --range;
    if (code <= range->last && (code - range->first) % static_cast<uint32_t>(range->stride) == 0) {
      return static_cast<uint32_t>(static_cast<int32_t>(code) + range->delta);
    }
  }
  return code;
}

const char* map_special(uint32_t code, const tables::CaseSpecial* specials, size_t count) {
  if (code < 0x80) return nullptr;
  const auto* end = specials + count;
  const auto* at = std::lower_bound(specials, end, code,
                                    [](const tables::CaseSpecial& s, uint32_t c) { return s.code < c; });
  return at != end && at->code == code ? at->text : nullptr;
}

uint32_t simple_upper(uint32_t code) {
  if (code < 0x80) return code >= 'a' && code <= 'z' ? code - 32 : code;
  return map_simple(code, tables::kUpperRanges, tables::kUpperRangeCount);
}
uint32_t simple_lower(uint32_t code) {
  if (code < 0x80) return code >= 'A' && code <= 'Z' ? code + 32 : code;
  return map_simple(code, tables::kLowerRanges, tables::kLowerRangeCount);
}

bool is_cased(uint32_t code) {
  return code < 0x110000 &&
         (simple_upper(code) != code || simple_lower(code) != code ||
          map_special(code, tables::kUpperSpecials, tables::kUpperSpecialCount) != nullptr);
}

void append_invalid_or(std::string& out, std::string_view text, size_t at, const Utf8Char& c,
                       uint32_t mapped) {
  if (c.code == kInvalidByte) {
    out.push_back(text[at]);
  } else {
    append_utf8(out, mapped);
  }
}

void append_upper(std::string& out, std::string_view text, size_t at, const Utf8Char& c) {
  if (const char* special = map_special(c.code, tables::kUpperSpecials, tables::kUpperSpecialCount)) {
    out += special;
  } else {
    append_invalid_or(out, text, at, c, simple_upper(c.code));
  }
}

void append_title(std::string& out, std::string_view text, size_t at, const Utf8Char& c) {
  if (const char* special = map_special(c.code, tables::kTitleSpecials, tables::kTitleSpecialCount)) {
    out += special;
  } else {
    append_upper(out, text, at, c);
  }
}

// Capital sigma is final when a cased letter comes before it and none after it. Marks between are skipped.
bool is_final_sigma(std::string_view text, size_t at, uint32_t length, bool cased_before) {
  if (!cased_before) return false;
  for (size_t next = at + length; next < text.size();) {
    const Utf8Char c = decode_utf8(text, next);
    if (char_class(c.code) != CharClass::mark && c.code != '\'' && c.code != 0xad) return !is_cased(c.code);
    next += c.length;
  }
  return true;
}

void append_lower(std::string& out, std::string_view text, size_t at, const Utf8Char& c, bool cased_before) {
  if (c.code == 0x3a3) {
    append_utf8(out, is_final_sigma(text, at, c.length, cased_before) ? 0x3c2 : 0x3c3);
  } else if (const char* special = map_special(c.code, tables::kLowerSpecials, tables::kLowerSpecialCount)) {
    out += special;
  } else {
    append_invalid_or(out, text, at, c, simple_lower(c.code));
  }
}

}  // namespace

CharClass char_class(uint32_t code) {
  if (code >= 0x110000) return CharClass::hidden;
  const uint32_t* end = tables::kClassRuns + tables::kClassRunCount;
  const uint32_t* run = std::upper_bound(tables::kClassRuns, end, code << 3 | 7);
  return static_cast<CharClass>(run[-1] & 7);
}

bool is_printable(uint32_t code) {
  const CharClass kind = char_class(code);
  return code == ' ' || (kind != CharClass::space && kind != CharClass::hidden);
}

std::string to_upper(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text, at);
    append_upper(out, text, at, c);
    at += c.length;
  }
  return out;
}

std::string to_lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool cased_before = false;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text, at);
    append_lower(out, text, at, c, cased_before);
    if (char_class(c.code) != CharClass::mark && c.code != '\'') cased_before = is_cased(c.code);
    at += c.length;
  }
  return out;
}

std::string capitalize(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool cased_before = false;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text, at);
    if (at == 0) {
      append_title(out, text, at, c);
    } else {
      append_lower(out, text, at, c, cased_before);
    }
    cased_before = is_cased(c.code);
    at += c.length;
  }
  return out;
}

std::string title_case(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool cased_before = false;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text, at);
    if (cased_before) {
      append_lower(out, text, at, c, true);
    } else {
      append_title(out, text, at, c);
    }
    cased_before = is_cased(c.code);
    at += c.length;
  }
  return out;
}

}  // namespace tessera::tokenizer
