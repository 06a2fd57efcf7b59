#include "core/utf8.h"

namespace tessera {
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

}  // namespace

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

}  // namespace tessera
