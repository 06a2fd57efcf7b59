#include "core/json_text.h"

#include "core/utf8.h"

namespace tessera {

void append_json_escape(std::string& out, char c) {
  static constexpr char kHex[] = "0123456789abcdef";
  static constexpr std::string_view kPlain = "\"\\\b\f\n\r\t", kShort = "\"\\bfnrt";
  const size_t at = kPlain.find(c);
  out += '\\';
  if (at != std::string_view::npos) {
    out += kShort[at];
    return;
  }
  out += "u00";
  out += kHex[static_cast<unsigned char>(c) >> 4];
  out += kHex[c & 15];
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  size_t clean = 0;  // start of the run of bytes that stand for themselves
  for (size_t at = 0; at < text.size();) {
    const unsigned char c = text[at];
    if (c >= 0x20 && c < 0x7F && c != '"' && c != '\\') {
      ++at;
      continue;
    }
    const Utf8Char decoded = decode_utf8(text, at);
    if (c >= 0x80 && decoded.code != kInvalidByte) {
      at += decoded.length;
      continue;
    }
    out.append(text, clean, at - clean);
    if (c >= 0x80) {
      out += kReplacement;
    } else {
      append_json_escape(out, text[at]);
    }
    clean = ++at;
  }
  out.append(text, clean, text.size() - clean);
  out += '"';
}

}  // namespace tessera
