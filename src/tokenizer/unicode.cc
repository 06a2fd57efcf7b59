#include "tokenizer/unicode.h"

#include <algorithm>

#include "tokenizer/unicode_tables.h"

namespace tessera::tokenizer {
namespace {

// The allowed values of the second byte after `lead`, and the sequence's length; 0 when `lead` begins
// nothing.
struct Lead {
  uint8_t length, low, high;
};
Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xc2 || byte > 0xf4) return {0, 0, 0};
  if (byte < 0xe0) return {2, 0x80, 0xbf};
  if (byte < 0xf0)
    return {3, static_cast<uint8_t>(byte == 0xe0 ? 0xa0 : 0x80),
            static_cast<uint8_t>(byte == 0xed ? 0x9f : 0xbf)};
  return {4, static_cast<uint8_t>(byte == 0xf0 ? 0x90 : 0x80),
          static_cast<uint8_t>(byte == 0xf4 ? 0x8f : 0xbf)};
}

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

Utf8Char decode_utf8(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[at + i]); };
  const Lead lead = lead_of(byte(0));
  if (lead.length == 1) return {byte(0), 1};
  if (lead.length == 0 || text.size() - at < lead.length) return {kInvalidByte, 1};
  if (byte(1) < lead.low || byte(1) > lead.high) return {kInvalidByte, 1};
  uint32_t code = byte(0) & (0x7fu >> lead.length);
  for (uint32_t i = 1; i < lead.length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {kInvalidByte, 1};
    code = code << 6 | (byte(i) & 0x3f);
  }
  return {code, lead.length};
}

void append_utf8(std::string& out, uint32_t code) {
  const auto push = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    push(code);
  } else if (code < 0x800) {
    push(0xc0 | code >> 6);
    push(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    push(0xe0 | code >> 12);
    push(0x80 | (code >> 6 & 0x3f));
    push(0x80 | (code & 0x3f));
  } else {
    push(0xf0 | code >> 18);
    push(0x80 | (code >> 12 & 0x3f));
    push(0x80 | (code >> 6 & 0x3f));
    push(0x80 | (code & 0x3f));
  }
}

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text, at);
    if (c.code == kInvalidByte) return false;
    at += c.length;
  }
  return true;
}

size_t count_code_points(std::string_view text) {
  size_t count = 0;
  for (size_t at = 0; at < text.size(); ++count) at += decode_utf8(text, at).length;
  return count;
}

void Utf8Repairer::push(std::string_view bytes, std::string& out) {
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    if (held_size_ > 0) {
      const Lead lead = lead_of(static_cast<uint8_t>(held_[0]));
      const bool fits = held_size_ == 1 ? byte >= lead.low && byte <= lead.high : (byte & 0xc0) == 0x80;
      if (fits) {
        held_[held_size_++] = c;
        if (held_size_ == lead.length) {
          out.append(held_, held_size_);
          held_size_ = 0;
        }
        continue;
      }
      out += kReplacement;
      held_size_ = 0;
    }
    const uint8_t length = lead_of(byte).length;
    if (length == 1) {
      out.push_back(c);
    } else if (length == 0) {
      out += kReplacement;
    } else {
      held_[held_size_++] = c;
    }
  }
}

void Utf8Repairer::finish(std::string& out) {
  if (held_size_ > 0) out += kReplacement;
  held_size_ = 0;
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
